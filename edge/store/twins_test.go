package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// twinsOf reads everything that is kept of devices.
func twinsOf(t *testing.T, s *Store) (rows map[string]string, values []string) {
	t.Helper()
	rows = map[string]string{}
	must(t, s.Twins(context.Background(), func(r TwinRow) {
		key := r.UID + "/" + r.Part
		if rows[key] != "" {
			t.Errorf("%s is there twice", key)
		}
		rows[key] = string(r.Data)
	}))
	var ids []uint64
	must(t, s.TwinValueIDs(context.Background(), func(v TwinValue) { ids = append(ids, v.ID) }))
	if len(ids) > 0 {
		all, err := s.TwinValues(context.Background(), ids)
		must(t, err)
		for _, v := range all {
			values = append(values, fmt.Sprint(v.UID, "/", v.Property, "#", v.Number, "=", v.Text))
		}
	}
	return rows, values
}

// TestTwinsAreWhatWasWrittenLast, over random histories with folds and restarts.
func TestTwinsAreWhatWasWrittenLast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	random := rand.New(rand.NewPCG(7, 7))
	want := map[string]string{}
	for step := range 400 {
		b := &TwinBatch{}
		if random.IntN(40) == 0 {
			uid := fmt.Sprint("u", random.IntN(8))
			b.Forget = []string{uid}
			maps.DeleteFunc(want, func(key, _ string) bool { return key[:len(uid)+1] == uid+"/" })
		}
		if random.IntN(40) == 0 {
			uid, part := fmt.Sprint("u", random.IntN(8)), fmt.Sprint("p", random.IntN(5))
			b.ForgetParts = []TwinRow{{UID: uid, Part: part}}
			delete(want, uid+"/"+part)
		}
		for range random.IntN(100) {
			uid, part, data := fmt.Sprint("u", random.IntN(8)), fmt.Sprint("p", random.IntN(5)), fmt.Sprint(step, "-", random.Uint64())
			b.Rows = append(b.Rows, TwinRow{UID: uid, Part: part, Data: []byte(data)})
			want[uid+"/"+part] = data
		}
		must(t, s.PutTwins(context.Background(), b))
		if random.IntN(60) == 0 {
			must(t, s.Close())
			s = openAt(t, path, Options{})
		}
	}
	rows, _ := twinsOf(t, s)
	if !maps.Equal(rows, want) {
		t.Errorf("%d rows, want %d", len(rows), len(want))
	}
}

func TestHistoriesKeepTheirOrderAndEndWithTheirDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openAt(t, path, Options{})
	a, b := &TwinValue{UID: "u1", Property: "p", Number: 1, Text: "one"}, &TwinValue{UID: "u2", Property: "p", Number: 1, Text: "other"}
	c := &TwinValue{UID: "u1", Property: "p", Number: 2, Text: "two"}
	must(t, s.PutTwins(context.Background(), &TwinBatch{Values: []*TwinValue{a, b}}))
	must(t, s.PutTwins(context.Background(), &TwinBatch{Values: []*TwinValue{c}}))
	if a.ID == 0 || b.ID <= a.ID || c.ID <= b.ID {
		t.Errorf("ids %d, %d, %d", a.ID, b.ID, c.ID)
	}
	must(t, s.PutTwins(context.Background(), &TwinBatch{Drop: []uint64{a.ID}}))
	must(t, s.Close())
	s = openAt(t, path, Options{})
	if _, values := twinsOf(t, s); fmt.Sprint(values) != "[u2/p#1=other u1/p#2=two]" {
		t.Errorf("values %q", values)
	}
	d := &TwinValue{UID: "u1", Property: "p", Number: 3, Text: "three"}
	must(t, s.PutTwins(context.Background(), &TwinBatch{Forget: []string{"u2"}, Values: []*TwinValue{d}}))
	if d.ID <= c.ID {
		t.Errorf("id %d is used twice", d.ID)
	}
	if _, values := twinsOf(t, s); fmt.Sprint(values) != "[u1/p#2=two u1/p#3=three]" {
		t.Errorf("values %q", values)
	}
}
