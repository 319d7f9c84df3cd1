package fleet

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
)

// minToken is the length of a token of 128 bits, as rand.Text writes them.
const minToken = 26

// LocalToken reads the token that lets whoever has it look at the fleet's page. It
// stays the same over restarts, so that pages that are open go on. It is made where
// there is none, and made anew where others than the owner could read it.
func LocalToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 == 0 {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read the token of the fleet's page: %w", err)
		}
		if token := strings.TrimSpace(string(b)); len(token) >= minToken {
			return token, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the token of the fleet's page: %w", err)
	}
	token := rand.Text() + rand.Text()
	if err := atomicfile.WriteIn(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the token of the fleet's page: %w", err)
	}
	return token, nil
}
