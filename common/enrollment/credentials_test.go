package enrollment

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/pki"
)

func newCredentials(t *testing.T, ca *pki.CA) Credentials {
	t.Helper()
	key, csr, err := pki.NewKeyAndCSR("pi-1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, "pi-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return Credentials{NodeName: "pi-1", CA: ca.CertPEM, Cert: cert, Key: key}
}

// TestCredentialsSurviveAPowerCutAtAnyPoint cuts two Saves in turn short after
// each of their steps: what is then read is a whole pair, never none.
func TestCredentialsSurviveAPowerCutAtAnyPoint(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	pairs := []Credentials{newCredentials(t, ca), newCredentials(t, ca), newCredentials(t, ca)}
	steps := len(pairs[0].saving("/"))
	for first := range steps + 1 {
		for second := range steps + 1 {
			dir := t.TempDir()
			if err := pairs[0].Save(dir); err != nil {
				t.Fatal(err)
			}
			newest := 0
			for n, upTo := range []int{first, second} {
				for _, step := range pairs[n+1].saving(dir)[:upTo] {
					if err := step(); err != nil {
						t.Fatal(err)
					}
				}
				got, err := Load(dir)
				if err != nil {
					t.Fatalf("cut after %d and %d steps: %v", first, second, err)
				}
				if upTo == steps {
					newest = n + 1
				}
				if !bytes.Equal(got.Cert, pairs[n+1].Cert) && !bytes.Equal(got.Cert, pairs[newest].Cert) && !bytes.Equal(got.Cert, pairs[n].Cert) {
					t.Errorf("cut after %d and %d steps: another certificate", first, second)
				}
				if upTo == steps && !bytes.Equal(got.Cert, pairs[n+1].Cert) {
					t.Errorf("cut after %d and %d steps: saved whole, but not read", first, second)
				}
			}
		}
	}
}

// TestAFirstSaveThatIsCutShortLeavesNoneOrAll: a machine that was joining has
// joined or has not.
func TestAFirstSaveThatIsCutShortLeavesNoneOrAll(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	c := newCredentials(t, ca)
	for n := range len(c.saving("/")) + 1 {
		dir := t.TempDir()
		for _, step := range c.saving(dir)[:n] {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := Load(dir); err == nil && !bytes.Equal(got.Cert, c.Cert) || err != nil && !errors.Is(err, ErrNotJoined) {
			t.Errorf("after %d steps: %v", n, err)
		}
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err != nil {
			t.Errorf("saved again after %d steps: %v", n, err)
		}
	}
}

func TestWhoReadsWhileAnotherSavesSeesAPair(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pairs := []Credentials{newCredentials(t, ca), newCredentials(t, ca)}
	if err := pairs[0].Save(dir); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := Load(dir); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for n := range 50 {
		if err := pairs[n%2].Save(dir); err != nil {
			t.Error(err)
		}
	}
	close(done)
	reader.Wait()
}

func TestAPairThatIsNoneIsSaid(t *testing.T) {
	ca, err := pki.NewCA("holdfast")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, b := newCredentials(t, ca), newCredentials(t, ca)
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{keyFile, newKeyFile} {
		if err := os.WriteFile(filepath.Join(dir, name), b.Key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(dir); err == nil || errors.Is(err, ErrNotJoined) {
		t.Errorf("another's key: %v", err)
	}
}
