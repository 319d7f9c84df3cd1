// Command hop passes requests on to a kubelet, over TLS on both sides, and does nothing
// else: what one more process on the way costs at least, for the bench to compare with.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	listen := flag.String("listen", "", "the `address` to listen on")
	to := flag.String("to", "", "the kubelet's `address`")
	serving := flag.String("serving", "", "a certificate and key to serve with, in `files` FILE.crt and FILE.key")
	client := flag.String("client", "", "the same for the kubelet, and its CA in FILE.ca")
	flag.Parse()
	fmt.Fprintln(os.Stderr, "hop:", serve(*listen, *to, *serving, *client))
	os.Exit(1)
}

// serve returns when it cannot go on.
func serve(listen, to, serving, client string) error {
	pair, err := tls.LoadX509KeyPair(client+".crt", client+".key")
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(client + ".ca")
	if err != nil {
		return err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool(), NextProtos: []string{"http/1.1"}}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s.ca holds no certificate", client)
	}
	server := &http.Server{
		Addr: listen, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		Handler: &httputil.ReverseProxy{
			Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "https", Host: to}) },
			Transport:     &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, DisableCompression: true},
			FlushInterval: -1,
		},
	}
	return server.ListenAndServeTLS(serving+".crt", serving+".key")
}
