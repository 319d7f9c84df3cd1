package adm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/show"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/fleet"
	"github.com/holdfast-edge/holdfast/common/unixsocket"
)

// cloudStatus prints the nodes, or the one that is named.
func (a *App) cloudStatus(ctx context.Context, o StatusOptions) error {
	if o.Node == "" {
		f, err := o.askFleet(ctx)
		if err != nil {
			return err
		}
		return a.show(o.Output, f, func() error { return show.Fleet(a.Out, f) })
	}
	var d fleet.Detail
	if err := o.askCloud(ctx, fleet.NodePath+url.PathEscape(o.Node), &d); err != nil {
		return err
	}
	return a.show(o.Output, d, func() error { return show.Node(a.Out, d, time.Now()) })
}

func (o StatusOptions) askFleet(ctx context.Context) (f fleet.Fleet, err error) {
	path := fleet.Path
	if o.Offline {
		path += "?state=offline"
	}
	return f, o.askCloud(ctx, path, &f)
}

// askCloud reads a document from the socket of the cloudcore on this machine.
func (o StatusOptions) askCloud(ctx context.Context, document string, into any) error {
	runDir, err := o.cloudRunDir()
	if err != nil {
		return err
	}
	socket := filepath.Join(runDir, fleet.SocketName)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://cloudcore"+document, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: unixsocket.Transport(socket)}).Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cloudcore is not running (nothing answers on %s): start it with `systemctl start cloudcore`, or see why it stopped with `journalctl -u cloudcore`", socket)
	case err != nil:
		return asRoot(fmt.Errorf("ask cloudcore on %s: %w", socket, err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("ask cloudcore on %s: %w", socket, said(response))
	}
	if err := json.NewDecoder(response.Body).Decode(into); err != nil {
		return fmt.Errorf("read cloudcore's answer on %s: %w", socket, err)
	}
	return nil
}

// cloudRunDir is where the cloudcore to ask has its socket.
func (o StatusOptions) cloudRunDir() (string, error) {
	if o.RunDir != "" {
		return o.RunDir, nil
	}
	path := o.Config
	if path == "" {
		path = config.CloudPath
	}
	if o.Config == "" && !exists(path) {
		return config.DefaultCloud().RunDir, nil
	}
	c, err := config.LoadCloud(path)
	if err == nil && c.RunDir == "" {
		err = fmt.Errorf("config file %s: runDir is empty, so cloudcore has no socket to be asked on: name a folder", path)
	}
	return c.RunDir, err
}

// maxSaid bounds what is taken of an answer that says no.
const maxSaid = 4 << 10

// said is the reason that a daemon gives, or the status where it gives none.
func said(response *http.Response) error {
	why, err := io.ReadAll(io.LimitReader(response.Body, maxSaid))
	if text := strings.TrimSpace(string(why)); err == nil && text != "" {
		return errors.New(text)
	}
	return errors.New(response.Status)
}
