package route

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"gorm.io/driver/sqlite"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// TestMessagesStayInTheirOrderWhateverTheClockSays: two of one batch, of which the
// later one has the earlier time.
func TestMessagesStayInTheirOrderWhateverTheClockSays(t *testing.T) {
	r, s, end := start(t, filepath.Join(t.TempDir(), "store.db"))
	must(t, s.Apply(t.Context(), []*wire.Object{routeObject(t, "sales", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#"}})}, nil))
	awaitFilters(t, r, 1)
	defer end()
	var batch []offer
	for i := range 3 {
		batch = append(batch, offer{topic: "t", payload: fmt.Append(nil, i), at: int64(100 - i), done: func(err error) { must(t, err) }})
	}
	r.keep(batch) // Run waits for others
	source := r.Reports()
	for _, key := range source.Take() {
		report, receipt, err := source.Report(t.Context(), key)
		must(t, err)
		m := new(wire.RoutedMessages)
		must(t, proto.Unmarshal(report.Payload, m))
		for i, got := range m.Messages {
			if string(got.Payload) != fmt.Sprint(i) {
				t.Errorf("message %d is %v", i, got)
			}
		}
		source.Settle(key, receipt)
	}
	if again := source.Take(); len(again) > 0 {
		t.Errorf("%q are to be reported once more", again)
	}
}

// TestNoOfferIsForgottenAtTheEnd: whoever offers is answered, while the Router ends
// and after.
func TestNoOfferIsForgottenAtTheEnd(t *testing.T) {
	for range 20 {
		r, s, end := start(t, filepath.Join(t.TempDir(), "store.db"))
		must(t, s.Apply(t.Context(), []*wire.Object{routeObject(t, "sales", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#"}})}, nil))
		awaitFilters(t, r, 1)
		var offering, answered sync.WaitGroup
		stop := make(chan struct{})
		for range 8 {
			offering.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					answered.Add(1)
					r.Offer(context.Background(), "t", nil, func(error) { answered.Done() })
				}
			})
		}
		end()
		close(stop)
		offering.Wait()
		done := make(chan struct{})
		go func() { answered.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("an offer has no answer")
		}
	}
}

// TestWhatCannotBeForgottenKeepsNobodyFromStarting: a route was deleted a moment before
// the power went, and now the disk is full.
func TestWhatCannotBeForgottenKeepsNobodyFromStarting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	sales := routeObject(t, "sales", v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "#"}})
	r, s, end := start(t, path)
	must(t, s.Apply(t.Context(), []*wire.Object{sales}, nil))
	awaitFilters(t, r, 1)
	must(t, offer1(t, r, "t", "x"))
	end()
	db, err := sql.Open(sqlite.DriverName, path)
	must(t, err)
	for _, statement := range []string{"DELETE FROM objects", "CREATE TRIGGER full BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'full'); END"} {
		_, err := db.ExecContext(t.Context(), statement)
		must(t, err)
	}
	must(t, db.Close())
	r, _, end = start(t, path)
	defer end()
	select {
	case <-r.Started():
	case <-r.ended:
	case <-time.After(patience):
		t.Error("it does not start")
	}
}
