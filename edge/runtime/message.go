package runtime

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's bounds on termination messages.
const (
	maxMessage      = 4096 // bytes of the termination message file
	maxLogMessage   = 2048 // bytes taken from the log instead
	maxLogLines     = 80
	maxLogTail      = 64 << 10 // bytes of the log that are looked at
	reasonOOMKilled = "OOMKilled"
)

// terminationMessage is what a container left behind to be read by people: its termination message file or, if it wishes
// so and failed without writing one, the end of its log. ok is false when neither says anything.
func terminationMessage(st *cri.ContainerStatus) (message string, ok bool) {
	path := st.Annotations[AnnotationTerminationMessagePath]
	if path != "" {
		for _, m := range st.Mounts {
			if m.ContainerPath == path {
				if b, err := readTail(m.HostPath, maxMessage); err == nil && len(b) > 0 {
					return strings.ToValidUTF8(string(b), "\ufffd"), true
				}
				break
			}
		}
	}
	fallback := st.Annotations[AnnotationTerminationMessagePolicy] == string(corev1.TerminationMessageFallbackToLogsOnError)
	if !fallback || st.ExitCode == 0 && st.Reason != reasonOOMKilled || st.LogPath == "" {
		return "", false
	}
	b, err := readTail(st.LogPath, maxLogTail)
	if err != nil {
		return "", false
	}
	m := tailOfLog(b)
	return m, m != ""
}

// readTail reads the last bytes of a regular file. Its writer is the container, which may have put anything there: no
// link is followed and nothing but a regular file is opened for long.
func readTail(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNoFollow|openNonBlock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if size := info.Size(); size > limit {
		if _, err := f.Seek(size-limit, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// tailOfLog joins the contents of a CRI log's last lines, within the bounds.
func tailOfLog(log []byte) string {
	lines := bytes.SplitAfter(log, []byte("\n"))
	var parts []string // last first
	size, count := 0, 0
	for i := len(lines) - 1; i >= 0 && size < maxLogMessage; i-- {
		e, ok := parseLogLine(lines[i])
		if !ok {
			continue
		}
		text := string(e.content)
		if !e.partial {
			if count++; count > maxLogLines {
				break
			}
			text += "\n"
		}
		parts = append(parts, text)
		size += len(text)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
	}
	out := b.String()
	if len(out) > maxLogMessage {
		out = out[len(out)-maxLogMessage:]
	}
	return strings.ToValidUTF8(out, "\ufffd")
}

// logEntry is one line of a CRI log: <RFC 3339 time> <stdout|stderr> <tags> <content>.
type logEntry struct {
	time    string
	stream  string
	partial bool // the container's line goes on in the next entry of the same stream
	content []byte
}

// parseLogLine reads one line, its newline included or not. A line cut off at its beginning, as the first one of a
// tail is, is no entry.
func parseLogLine(line []byte) (logEntry, bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	var e logEntry
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(stamp) < len("2006-01-02T15:04:05Z") || stamp[4] != '-' || stamp[10] != 'T' {
		return e, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok || (string(stream) != "stdout" && string(stream) != "stderr") {
		return e, false
	}
	tags, content, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return e, false
	}
	first, _, _ := bytes.Cut(tags, []byte(":"))
	switch string(first) {
	case "P":
		e.partial = true
	case "F":
	default:
		return e, false
	}
	e.time, e.stream, e.content = string(stamp), string(stream), content
	return e, true
}
