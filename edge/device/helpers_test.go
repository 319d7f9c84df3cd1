package device

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// copyDatabase copies what is on the disk, as it would be found after a power cut.
func copyDatabase(t *testing.T, from, to string) {
	t.Helper()
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(from + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		must(t, os.WriteFile(to+suffix, b, 0o600))
	}
}
