package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHealthTellsOfTheCopyTheReserveAndTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h, err := s.Health()
	if err != nil || !h.GoodCopy.IsZero() || h.Free == 0 || h.Bytes < h.Free {
		t.Errorf("before the first copy: %+v, %v", h, err)
	}
	if err := s.Copy(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.keepReserve()
	h, err = s.Health()
	if err != nil || time.Since(h.GoodCopy) > time.Minute || !h.Reserve {
		t.Errorf("after it: %+v, %v", h, err)
	}
}

func TestCheckFindsDamageAndDisturbsNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if err := s.Check(ctx); err != nil {
		t.Fatalf("a sound database: %v", err)
	}
	if err := s.SetMeta(ctx, "k", make([]byte, 100_000)); err != nil {
		t.Fatalf("after a check: %v", err)
	}
	if err := s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)").Error; err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, 8192)
	for i := range junk {
		junk[i] = 0xa5
	}
	_, err = f.WriteAt(junk, 4096)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(ctx); !damaged(err) {
		t.Errorf("a damaged database: %v", err)
	}
	select {
	case <-s.Damaged():
		t.Error("a check alone has ended the use of the database")
	default:
	}
}
