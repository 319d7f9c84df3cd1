package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"
)

// open leaves s.db connected to a sound, migrated database.
func (s *Store) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	reason, err := s.examine()
	if err != nil {
		return err
	}
	if reason == "" {
		err := s.use()
		if err == nil || !damaged(err) {
			return err
		}
		reason = err.Error()
	}
	return s.recover(reason)
}

// examine looks at the files before SQLite does. It returns what is wrong in a
// way that calls for the good copy, or an error that nothing here can help.
func (s *Store) examine() (reason string, err error) {
	_, err = os.Stat(s.goodPath())
	haveGood := err == nil
	version, size, err := headerVersion(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if haveGood {
			return "the database file is missing", nil
		}
		s.opened.Created = true
		return "", nil
	case err != nil:
		return "", err
	case size == 0:
		if haveGood {
			return "the database file is empty", nil
		}
		s.opened.Created = true
		return "", nil
	case version > uint32(schemaVersion()) && version < 1<<16:
		// Asked of the file itself: opening it would already fold its log into it.
		return "", fmt.Errorf("%w: its schema is version %d, this edgecore knows up to %d: install the newer edgecore again, or move the database away and start afresh",
			ErrNewer, version, schemaVersion())
	}
	return "", nil
}

// headerVersion reads PRAGMA user_version out of the file's header (bytes 60 to
// 63, https://www.sqlite.org/fileformat.html); 0 where there is no header.
func headerVersion(path string) (version uint32, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	header := make([]byte, 100)
	if _, err := io.ReadFull(f, header); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, info.Size(), nil
		}
		return 0, 0, err
	}
	if !strings.HasPrefix(string(header), "SQLite format 3\x00") {
		return 0, info.Size(), nil
	}
	return binary.BigEndian.Uint32(header[60:64]), info.Size(), nil
}

// use connects, checks, migrates and loads; on an error nothing stays open.
func (s *Store) use() (err error) {
	db, err := connect(s.path)
	if err != nil {
		return err
	}
	s.db = db
	defer func() {
		if err != nil {
			err = errors.Join(err, disconnect(db))
			s.db = nil
		}
	}()
	if err := quickCheck(db); err != nil {
		return err
	}
	// A small log: it is written into the file every 256 pages, and cut back after.
	for _, pragma := range []string{"PRAGMA wal_autocheckpoint = 256", "PRAGMA journal_size_limit = 1048576"} {
		if err := db.Exec(pragma).Error; err != nil {
			return err
		}
	}
	from, err := migrate(db)
	if err != nil {
		return err
	}
	s.opened.SchemaBefore = from
	if from != schemaVersion() { // so that the header says so, too
		if err := db.Exec("PRAGMA wal_checkpoint(TRUNCATE)").Error; err != nil {
			return err
		}
	}
	return s.load()
}

func quickCheck(db *gorm.DB) error {
	var lines []string
	if err := db.Raw("PRAGMA quick_check(3)").Scan(&lines).Error; err != nil {
		return fmt.Errorf("check the database: %w", err)
	}
	if len(lines) == 1 && lines[0] == "ok" {
		return nil
	}
	return fmt.Errorf("%w: %s", errDamaged, strings.Join(lines, "; "))
}

// recover sets the database aside and puts the good copy, or nothing, in its place.
func (s *Store) recover(reason string) error {
	r := &Recovery{Reason: reason}
	s.opened = Opened{Recovery: r}
	aside, err := s.setAside()
	if err != nil {
		return fmt.Errorf("%s; set it aside: %w", reason, err)
	}
	r.SetAside = aside
	if info, err := os.Stat(s.goodPath()); err == nil {
		err := s.restore()
		if err == nil {
			r.Restored, r.CopyTime = true, info.ModTime()
			s.log.Error("the node's database was damaged; its last good copy is in use now",
				"path", s.path, "reason", reason, "setAside", aside, "copyOf", r.CopyTime.Format(time.RFC3339))
			return nil
		}
		if !damaged(err) && !errors.Is(err, ErrNewer) {
			return fmt.Errorf("%s; restore the good copy: %w", reason, err)
		}
		r.Reason += "; the good copy: " + err.Error()
		if _, err := s.setAside(); err != nil {
			return err
		}
	}
	s.opened.Created = true
	if err := s.use(); err != nil {
		return err
	}
	s.log.Error("the node's database was damaged and there is no good copy: it starts empty; running containers are left alone until the hub has sent everything",
		"path", s.path, "reason", r.Reason, "setAside", aside)
	return nil
}

// restore copies the good copy into place (the copy itself stays) and opens it.
// A restored database may lack what came after the copy, so it does not count as
// synced until the hub says so again.
func (s *Store) restore() error {
	if err := copyFile(s.goodPath(), s.path); err != nil {
		return err
	}
	if err := s.use(); err != nil {
		return err
	}
	s.synced.Store(false)
	err := s.db.Where("key = ?", metaSyncedOnce).Delete(&metaRow{}).Error
	if err == nil {
		s.lineage++
		err = putMeta(s.db, metaLineage, []byte(strconv.FormatUint(s.lineage, 10)))
	}
	if err != nil {
		return errors.Join(err, disconnect(s.db))
	}
	return nil
}

// setAside renames the database and SQLite's files beside it to the next free
// .corrupt-N.
func (s *Store) setAside() (string, error) {
	n := 1
	for ; ; n++ {
		if _, err := os.Lstat(fmt.Sprintf("%s.corrupt-%d", s.path, n)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	aside := fmt.Sprintf("%s.corrupt-%d", s.path, n)
	moved := ""
	for _, suffix := range []string{"-wal", "-shm", ""} { // the file itself last: until then this can be done again
		err := os.Rename(s.path+suffix, aside+suffix)
		switch {
		case err == nil:
			moved = aside
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
	}
	return moved, syncDir(filepath.Dir(s.path))
}

// copyFile makes to a durable copy of from, whole or not at all.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := to + ".tmp"
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	err = errors.Join(err, out.Sync(), out.Close())
	if err == nil {
		err = os.Rename(temp, to)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(to))
}

// syncDir makes renames in a directory survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
