package pki

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// WriteKubeconfig writes a kubeconfig for the client pair, with the certificates inside it, so
// that it can be copied to another machine. user is the name shown by kubectl.
func WriteKubeconfig(path, server, user string, ca Pair, client Pair) error {
	var data [3]string
	for i, name := range []string{ca.Cert, client.Cert, client.Key} {
		text, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("write kubeconfig %s: %w", path, err)
		}
		data[i] = base64.StdEncoding.EncodeToString(text)
	}
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Config\n")
	b.WriteString("clusters:\n- name: holdfast\n  cluster:\n")
	b.WriteString("    server: " + strconv.Quote(server) + "\n")
	b.WriteString("    certificate-authority-data: " + data[0] + "\n")
	b.WriteString("users:\n- name: " + strconv.Quote(user) + "\n  user:\n")
	b.WriteString("    client-certificate-data: " + data[1] + "\n")
	b.WriteString("    client-key-data: " + data[2] + "\n")
	b.WriteString("contexts:\n- name: holdfast\n  context:\n    cluster: holdfast\n    user: " + strconv.Quote(user) + "\n")
	b.WriteString("current-context: holdfast\n")
	return WriteFile(path, []byte(b.String()))
}
