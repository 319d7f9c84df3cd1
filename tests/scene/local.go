package scene

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/tests/world"
)

// Local asks the devices' HTTP API of a node, by its socket; path is below that of this
// test's namespace. An error means that nobody answered.
func (s *Scene) Local(n *world.Node, method, path, body string) (status int, answer string, err error) {
	s.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.RunDir(), localstatus.DevicesSocketName))
	}}}
	request, err := http.NewRequestWithContext(s.Ctx, method, "http://edgecore"+localstatus.DevicesPath+"/"+s.NS+"/"+path, strings.NewReader(body))
	s.Must(err)
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

// LocalDevice reads a device from the node's HTTP API.
func (s *Scene) LocalDevice(n *world.Node, name string) (d localstatus.Device, err error) {
	s.Helper()
	status, answer, err := s.Local(n, http.MethodGet, name, "")
	if err != nil || status != http.StatusOK {
		return d, err
	}
	return d, json.Unmarshal([]byte(answer), &d)
}
