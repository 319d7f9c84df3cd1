package stream

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// logs serves the node's own logs: files of /var/log, or what ?query= asks for.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	if _, asks := r.URL.Query()["query"]; asks {
		s.queryLogs(w, r)
		return
	}
	s.serveFile(w, r, cmp.Or(strings.TrimPrefix(r.URL.Path, "/logs"), "/"))
}

// serveFile serves a file or the listing of a directory.
func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, name string) {
	root, err := os.OpenRoot(s.o.LogsDir)
	if err != nil {
		answer(w, fmt.Errorf("logs of node %s: %w", s.o.Node, err))
		return
	}
	defer root.Close()
	request := *r
	request.URL = &url.URL{Path: name}
	http.FileServerFS(logFiles{root, s.o.LogsDir}).ServeHTTP(w, &request)
}

// logFiles are the files and directories below /var/log. Nothing else is opened (a FIFO
// would wait for its writer), and no link leads out; one that is absolute and leads back
// in, as those of /var/log/containers, is followed.
type logFiles struct {
	root *os.Root
	dir  string
}

const maxLinks = 8

func (l logFiles) Open(name string) (fs.File, error) {
	name = path.Clean(name)
	for range maxLinks {
		info, err := l.root.Lstat(name)
		if err != nil {
			return nil, refuse(name, err)
		}
		if info.IsDir() || info.Mode().IsRegular() {
			break
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
		}
		to, err := l.root.Readlink(name)
		if err != nil {
			return nil, refuse(name, err)
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		} else if to, err = filepath.Rel(l.dir, to); err != nil {
			return nil, refuse(name, err)
		}
		if !filepath.IsLocal(to) {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
		}
		name = to
	}
	f, err := l.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, refuse(name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.IsDir() && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// refuse turns what is neither missing nor an I/O error into what is answered with 403:
// os.Root has no error of its own for a path that leads out.
func refuse(name string, err error) error {
	var errno syscall.Errno
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &errno) && errno != syscall.ELOOP {
		return err
	}
	return &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
}

// What the kubelet bounds a query of logs by.
const (
	maxServices  = 4
	maxService   = 256
	maxTailLines = 100_000
)

const (
	// journalTimeout bounds a run of journalctl.
	journalTimeout = 2 * time.Minute
	// journalRest is how long the client may then take to read the rest.
	journalRest = 5 * time.Second
)

var unsafeService = regexp.MustCompile(`[^a-zA-Z0-9@_.:-]`)

// nodeQuery is a NodeLogQuery.
type nodeQuery struct {
	services     []string
	file         string
	since, until time.Time
	tail         int // -1: all
	boot         string
	pattern      string
	filter       *regexp.Regexp
}

func (q *nodeQuery) plain() bool {
	return q.since.IsZero() && q.until.IsZero() && q.tail < 0 && q.boot == "" && q.pattern == ""
}

func parseNodeQuery(v url.Values) (*nodeQuery, error) {
	q := &nodeQuery{tail: -1, pattern: v.Get("pattern"), boot: v.Get("boot")}
	for _, what := range v["query"] {
		switch {
		case strings.TrimSpace(what) == "":
		case strings.ContainsAny(what, `/\`) && q.file != "":
			return nil, errors.New("query: more than one file")
		case strings.ContainsAny(what, `/\`):
			q.file = what
		case len(what) > maxService || unsafeService.MatchString(what):
			return nil, fmt.Errorf("query: %q is no name of a service", what)
		default:
			q.services = append(q.services, what)
		}
	}
	var err error
	switch {
	case q.file == "" && len(q.services) == 0:
		return nil, errors.New("query: it may not be empty")
	case q.file != "" && len(q.services) > 0:
		return nil, errors.New("query: a file and a service cannot be had together")
	case len(q.services) > maxServices:
		return nil, fmt.Errorf("query: %d services, %d are the most", len(q.services), maxServices)
	}
	for name, t := range map[string]*time.Time{"sinceTime": &q.since, "untilTime": &q.until} {
		if text := v.Get(name); text != "" {
			if *t, err = time.Parse(time.RFC3339, text); err != nil {
				return nil, fmt.Errorf("%s: %q is no time such as 2006-01-02T15:04:05Z", name, text)
			}
		}
	}
	if !q.since.IsZero() && !q.until.IsZero() && q.since.After(q.until) {
		return nil, errors.New("untilTime: it must be after sinceTime")
	}
	if text := v.Get("tailLines"); text != "" {
		if q.tail, err = strconv.Atoi(text); err != nil || q.tail < 0 || q.tail > maxTailLines {
			return nil, fmt.Errorf("tailLines: %q is no number between 0 and %d", text, maxTailLines)
		}
	}
	if q.boot != "" {
		if n, err := strconv.Atoi(q.boot); err != nil || n > 0 {
			return nil, fmt.Errorf("boot: %q is no number below 1", q.boot)
		}
	}
	if q.filter, err = regexp.Compile(q.pattern); err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	if q.file != "" && !q.plain() {
		return nil, errors.New("query: a file cannot be had with options")
	}
	return q, nil
}

func (s *Server) queryLogs(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/logs" && r.URL.Path != "/logs/" {
		answer(w, fail(http.StatusNotAcceptable, "a path is not allowed beside a query"))
		return
	}
	q, err := parseNodeQuery(r.URL.Query())
	if err != nil {
		answer(w, &failure{http.StatusBadRequest, err})
		return
	}
	if q.file != "" {
		s.serveFile(w, r, path.Clean("/"+q.file))
		return
	}
	own := len(q.services) == 1 && q.services[0] == "edgecore" && s.o.NodeLog != nil
	if !own && s.o.Journalctl == "" {
		s.serviceFile(w, r, q)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !own {
		// A client that does not read is not waited for either. What is left of the deadline
		// is for no other request.
		w.Header().Set("Connection", "close")
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.journalTimeout + journalRest)); err != nil {
			s.log.Debug("a client of the journal that does not read is waited for", "err", err)
		}
	}
	out := io.Writer(w)
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is one that there is
		defer z.Close()
		w.Header().Set("Content-Encoding", "gzip")
		out = z
	}
	if own {
		s.o.NodeLog.writeTo(out, q)
		return
	}
	if err := s.journal(r.Context(), out, q); err != nil {
		fmt.Fprintf(out, "\nthe journal of node %s cannot be read to its end: %v\n", s.o.Node, err)
	}
}

// serviceFile serves the log file of a service on a machine without a journal, where the
// kubelet looks for one.
func (s *Server) serviceFile(w http.ResponseWriter, r *http.Request, q *nodeQuery) {
	name := q.services[0]
	if len(q.services) == 1 && q.plain() {
		for _, file := range []string{name, name + ".log", name + "/" + name + ".log"} {
			if info, err := os.Stat(filepath.Join(s.o.LogsDir, file)); err == nil && info.Mode().IsRegular() {
				s.serveFile(w, r, "/"+file)
				return
			}
		}
	}
	answer(w, fail(http.StatusNotFound, "no log of %s on node %s: there is no journal, and no file of that name in %s that could be had so",
		strings.Join(q.services, ", "), s.o.Node, s.o.LogsDir))
}

// writeTo writes the lines that q asks for.
func (r *Ring) writeTo(w io.Writer, q *nodeQuery) {
	var want []string
	for _, l := range r.snapshot() {
		if !q.since.IsZero() && l.at.Before(q.since) || !q.until.IsZero() && l.at.After(q.until) || !q.filter.MatchString(l.text) {
			continue
		}
		want = append(want, l.text)
	}
	if q.tail >= 0 {
		want = want[max(0, len(want)-q.tail):]
	}
	for _, text := range want {
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
	}
}

// journal writes what journalctl prints.
func (s *Server) journal(ctx context.Context, w io.Writer, q *nodeQuery) error {
	ctx, cancel := context.WithTimeout(ctx, s.journalTimeout)
	defer cancel()
	args := []string{"--utc", "--no-pager", "--output=short-precise"}
	const layout = "2006-01-02 15:04:05 UTC"
	if !q.since.IsZero() {
		args = append(args, "--since="+q.since.UTC().Format(layout))
	}
	if !q.until.IsZero() {
		args = append(args, "--until="+q.until.UTC().Format(layout))
	}
	if q.tail >= 0 {
		args = append(args, "--lines="+strconv.Itoa(q.tail))
	}
	if q.boot != "" {
		args = append(args, "--boot="+q.boot)
	}
	if q.pattern != "" {
		args = append(args, "--grep="+q.pattern)
	}
	for _, name := range q.services {
		args = append(args, "--unit="+name)
	}
	cmd := exec.CommandContext(ctx, s.o.Journalctl, args...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, copied := io.Copy(w, pipe)
	late := ctx.Err()
	cancel() // if the client is gone, journalctl need not go on
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.Is(late, context.DeadlineExceeded) {
		return fmt.Errorf("journalctl was stopped after %s: ask for less, with tailLines or sinceTime", s.journalTimeout)
	}
	if copied == nil && errors.As(err, &exit) { // it has found nothing, or was at its end when it was cancelled
		return nil
	}
	return errors.Join(copied, err)
}
