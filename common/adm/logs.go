package adm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// LogsOptions are what of a container's log is wanted.
type LogsOptions struct {
	Target
	Follow, Previous, Timestamps bool
	Tail                         int64         // lines from the end; negative: all
	Since                        time.Duration // 0: from the beginning
	LimitBytes                   int64         // 0: no limit
}

func (o LogsOptions) check() error {
	switch {
	case o.Since < 0:
		return usage("--since %s: choose more than 0", o.Since)
	case o.LimitBytes < 0:
		return usage("--limit-bytes %d: choose 1 or more", o.LimitBytes)
	case o.Tail < -1:
		return usage("--tail %d: choose 0 or more, or -1 for all", o.Tail)
	}
	return nil
}

// query is the kubelet's.
func (o LogsOptions) query() url.Values {
	q := url.Values{}
	for name, set := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if set {
			q.Set(name, "true")
		}
	}
	if o.Tail >= 0 {
		q.Set("tailLines", strconv.FormatInt(o.Tail, 10))
	}
	if o.Since > 0 {
		q.Set("sinceSeconds", strconv.FormatInt(int64(math.Ceil(o.Since.Seconds())), 10))
	}
	if o.LimitBytes > 0 {
		q.Set("limitBytes", strconv.FormatInt(o.LimitBytes, 10))
	}
	return q
}

// Logs prints what a container on this machine has written. Following ends, without an
// error, when the container does, or ctx.
func (a *App) Logs(ctx context.Context, o LogsOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	where, err := a.find(ctx, o.Target)
	if err != nil {
		return err
	}
	runDir, err := o.runDir()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, nodeURL("containerLogs", where, o.query()).String(), nil)
	if err != nil {
		return err
	}
	response, err := nodeClient(runDir).Do(request)
	if err == nil {
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("the log of %s: %w", where, said(response))
		}
		_, err = io.Copy(a.Out, response.Body)
	}
	switch {
	case ctx.Err() != nil && o.Follow, errors.Is(err, syscall.EPIPE): // the reader has seen enough
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the log of %s broke off: edgecore has ended it", where)
	case err != nil:
		return fmt.Errorf("the log of %s: %w", where, notRunning(err, runDir))
	}
	return nil
}

func (p place) String() string {
	return fmt.Sprintf("container %s of pod %s/%s", p.container, p.namespace, p.pod)
}

// nodeURL is a request of the node's own API, that of a kubelet.
func nodeURL(verb string, p place, query url.Values) *url.URL {
	path := strings.Join([]string{localstatus.NodePath, verb, p.namespace, p.pod, p.container}, "/")
	return &url.URL{Scheme: "http", Host: "edgecore", Path: path, RawQuery: query.Encode()}
}

func nodeClient(runDir string) *http.Client {
	return &http.Client{Transport: unixsocket.Transport(filepath.Join(runDir, localstatus.SocketName))}
}

// notRunning says of an error that nobody answers, where that is it.
func notRunning(err error, runDir string) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w (nothing answers on %s)", localstatus.ErrNotRunning, filepath.Join(runDir, localstatus.SocketName))
	}
	return asRoot(err)
}
