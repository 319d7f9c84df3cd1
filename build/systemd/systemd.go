// Package systemd holds the units of the daemons. `holdfast init` and `holdfast
// join` fill them in and install them. It holds the texts, and the one function
// that fills them in.
package systemd

import (
	"embed"
	"fmt"
	"strings"
)

// Names of the units when nothing else distinguishes several of them.
const (
	Edgecore     = "edgecore.service"
	Cloudcore    = "cloudcore.service"
	ControlPlane = "holdfast-controlplane.service"
)

//go:embed *.service
var files embed.FS

// Unit is the text of the unit called name (one of the constants) with the
// command line in it. Arguments are quoted as systemd reads them.
func Unit(name string, command ...string) (string, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("unit %s: %w", name, err)
	}
	quoted := make([]string, len(command))
	for i, word := range command {
		quoted[i] = quote(word)
	}
	return strings.ReplaceAll(string(text), "{{command}}", strings.Join(quoted, " ")), nil
}

// quote protects what systemd would expand in a command line.
func quote(word string) string {
	word = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(word)
	if strings.ContainsAny(word, " \t\n'\"\\;") || word == "" {
		return `"` + word + `"`
	}
	return word
}
