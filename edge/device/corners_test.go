package device

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"gorm.io/driver/sqlite"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// TestADeviceMayComeBeforeItsModel: both in one batch, in either order.
func TestADeviceMayComeBeforeItsModel(t *testing.T) {
	n := newNode(t)
	var all []any
	for i := range 50 {
		all = append(all, aDevice(fmt.Sprint("d", i)))
	}
	n.apply(append(all, thermometer("shop"))...)
	for i := range 50 {
		n.await(fmt.Sprint("d", i), "its model", usable)
	}
}

// TestTheLastWordOfTheCloudAboutADeviceCounts: however many of its words come in one
// batch.
func TestTheLastWordOfTheCloudAboutADeviceCounts(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"), aDevice("other"))
	n.await("cellar", "its model", usable)
	n.await("other", "its model", usable)
	n.stop() // what Run does is done here, in the worst order
	m := n.Manager
	b := newBatch(m)
	b.remove("uid-cellar")
	b.define(aDevice("cellar")) // it went to another node, and came back
	attic := aDevice("attic")
	b.define(attic)
	b.remove("uid-attic")
	m.commit(t.Context(), b)
	if _, err := n.Get(key("cellar")); err != nil {
		t.Errorf("removed and defined: %v", err)
	}
	if v, err := n.Get(key("attic")); err == nil {
		t.Errorf("defined and removed: %v is still there", v.Key)
	}
	// Its model is another one now, and the old one changes.
	kettle := thermometer("shop")
	kettle.Name, kettle.UID = "kettle", "model-kettle"
	m.models["model-kettle"] = kettle
	other := aDevice("other")
	other.Spec.DeviceModelRef = &v1beta1.LocalObjectReference{Name: "kettle"}
	b = newBatch(m)
	b.define(other)
	b.redefine("shop", "thermometer")
	m.commit(t.Context(), b)
	if v, err := n.Get(key("other")); err != nil || v.Model == nil || v.Model.Name != "kettle" {
		t.Errorf("%v, %v", v.Definition, err)
	}
	n.stop = nil
	must(t, n.store.Close())
}

// TestOfTwoNamesakesTheOneThatEndsTakesNothingAlong: the power went when a Device had
// been made anew, and the end of the first had not come.
func TestOfTwoNamesakesTheOneThatEndsTakesNothingAlong(t *testing.T) {
	for _, uids := range [][2]types.UID{{"uid-a", "uid-b"}, {"uid-b", "uid-a"}} {
		n := newNode(t)
		was, is := aDevice("cellar"), aDevice("cellar")
		was.UID, is.UID = uids[0], uids[1]
		n.end()
		s, err := store.Open(n.path, store.Options{})
		must(t, err)
		n.store = s
		n.apply(thermometer("shop"), was, is)
		must(t, s.Close())
		n.start()
		must(t, n.store.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_DEVICE, Namespace: "shop", Name: "cellar", Uid: string(was.UID)}}))
		n.await("cellar", "its new self", func(v View) bool { return v.UID == string(is.UID) })
		for deadline := time.After(patience); n.known() > 1; {
			select {
			case <-deadline:
				t.Fatal("the first one stays")
			case <-time.After(time.Millisecond):
			}
		}
		if v, err := n.Get(key("cellar")); err != nil || v.UID != string(is.UID) {
			t.Errorf("%v, %v", v.Definition, err)
		}
	}
}

// known is how many devices there are, by uid.
func (n *node) known() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.byUID)
}

// TestASlowListenerHearsNothingOfWhatCameAndWent: a change from nothing to nothing has
// no name.
func TestASlowListenerHearsNothingOfWhatCameAndWent(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"))
	changes, cancel := n.Listen(0)
	defer cancel()
	names := []string{"first", "cellar", "cellar", "last"}
	for i, name := range names {
		d := aDevice(name)
		d.UID = types.UID(fmt.Sprint("uid-", i))
		n.apply(d)
		n.await(name, "its model", usable)
		if name == "cellar" {
			must(t, n.store.Apply(t.Context(), nil, []*wire.ObjectRef{{Kind: wire.Kind_KIND_DEVICE, Namespace: "shop", Name: name, Uid: string(d.UID)}}))
			for deadline := time.After(patience); len(n.List()) > 1; {
				select {
				case <-deadline:
					t.Fatal("it stays")
				case <-time.After(time.Millisecond):
				}
			}
		}
	}
	for c := range changes {
		if c.Before.Definition == nil && c.After.Definition == nil {
			t.Fatal("a change of nothing")
		}
		if c.Key() == key("last") {
			return
		}
	}
}

// TestNoOperationIsForgottenAtTheEnd: whoever has submitted one is answered.
func TestNoOperationIsForgottenAtTheEnd(t *testing.T) {
	for range 30 {
		n := newNode(t)
		var submitted, answered sync.WaitGroup
		for range 8 {
			submitted.Go(func() {
				for {
					answered.Add(1)
					if err := n.Submit(context.Background(), Operation{Key: key("x"), Done: func(_, _ View, _ error) { answered.Done() }}); err != nil {
						answered.Done()
						return
					}
				}
			})
		}
		n.end()
		submitted.Wait()
		done := make(chan struct{})
		go func() { answered.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("an operation has no answer")
		}
	}
}

// TestWhatCannotBeForgottenKeepsNobodyFromStarting: devices were deleted a moment
// before the power went, and now the disk is full.
func TestWhatCannotBeForgottenKeepsNobodyFromStarting(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	must(t, n.report("cellar", "temperature", "1"))
	n.end()
	db, err := sql.Open(sqlite.DriverName, n.path)
	must(t, err)
	for _, statement := range []string{"DELETE FROM objects", "CREATE TRIGGER full BEFORE DELETE ON twin_devices BEGIN SELECT RAISE(ABORT, 'full'); END"} {
		_, err := db.ExecContext(t.Context(), statement)
		must(t, err)
	}
	must(t, db.Close())
	n.start()
	n.apply(aDevice("attic"))
	n.await("attic", "its definition", func(View) bool { return true })
}
