package unixsocket

import (
	"context"
	"net"
	"net/http"
)

// Transport makes HTTP requests on a socket, each on a connection of its own; the
// host in a URL is not looked at.
func Transport(path string) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
}
