package device

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// teller makes up what one database of a node says of a device: version n of a
// property is always the same, and so is value n of a history.
type teller struct {
	r     *rand.Rand
	store string
}

func (t *teller) value(name string, n uint64) *wire.PropertyValue {
	if n%5 == 0 {
		return nil
	}
	return &wire.PropertyValue{Value: fmt.Sprint(t.store, name, n), UnixMs: int64(1000 * n)}
}

func (t *teller) report() *wire.DeviceReport {
	r := &wire.DeviceReport{State: "online", ObservedGeneration: 3, LastHeardUnixMs: 1}
	for _, name := range []string{"a", "b", "c"} {
		if t.r.IntN(3) == 0 {
			continue
		}
		n := uint64(1 + t.r.IntN(9))
		p := &wire.PropertyReport{Name: name, Version: n, Reported: t.value(name, n), Desired: t.value(name, n+1), DesiredByEdge: n%2 == 0, Overridden: t.value(name, n+2)}
		if n%3 == 0 {
			p.Rejected, p.RejectedReason = &wire.PropertyValue{Value: "x", UnixMs: 4}, "it is x"
		}
		for v := uint64(1 + t.r.IntN(8)); v <= 12 && t.r.IntN(4) > 0; v++ {
			p.History = append(p.History, &wire.HistoryValue{Number: v, Value: fmt.Sprint(t.store, v), UnixMs: int64(v)})
		}
		p.HistoryDropped = uint64(t.r.IntN(4))
		r.Properties = append(r.Properties, p)
	}
	return r
}

func spec() *v1beta1.DeviceSpec {
	return &v1beta1.DeviceSpec{Properties: []v1beta1.DeviceProperty{{Name: "a", History: &v1beta1.History{Limit: 4}}, {Name: "b", History: &v1beta1.History{Limit: 1}}, {Name: "c"}}}
}

func text(t *testing.T, s *v1beta1.DeviceStatus) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReportsOfOneDatabaseMergeInAnyOrder: once, twice, forwards or backwards, and
// whatever was there before.
func TestReportsOfOneDatabaseMergeInAnyOrder(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	by := v1beta1.StatusWriter{Node: "n", Epoch: 7, Store: "own"}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 3))
		own, before := &teller{r, "own"}, &teller{r, "earlier"}
		merge := func(s *v1beta1.DeviceStatus, reports ...*wire.DeviceReport) *v1beta1.DeviceStatus {
			for _, report := range reports {
				was := text(t, s)
				next := Merge(s, spec(), report, by, now)
				if text(t, s) != was {
					t.Fatalf("seed %d: Merge changed what it was given", seed)
				}
				s = next
			}
			return s
		}
		base := &v1beta1.DeviceStatus{}
		if r.IntN(2) == 0 {
			base = Merge(base, spec(), before.report(), v1beta1.StatusWriter{Node: "n", Epoch: 5, Store: "earlier"}, now)
		}
		reports := make([]*wire.DeviceReport, 1+r.IntN(4))
		for i := range reports {
			reports[i] = own.report()
		}
		want := merge(base, reports...)
		shuffled := slices.Clone(reports)
		for range 3 {
			r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			some := shuffled[:r.IntN(len(shuffled)+1)]
			if got := merge(base, slices.Concat(some, shuffled, some)...); text(t, got) != text(t, want) {
				t.Fatalf("seed %d:\n%s\nin another order\n%s", seed, text(t, want), text(t, got))
			}
		}
		if again := merge(want, reports[len(reports)-1]); news(want, again) {
			t.Fatalf("seed %d: the same report is news", seed)
		}
		for _, twin := range want.Twins {
			if limit := limitsOf(spec())[twin.PropertyName]; len(twin.History) > limit {
				t.Fatalf("seed %d: %d values of %s, %d are kept", seed, len(twin.History), twin.PropertyName, limit)
			}
			if !slices.IsSortedFunc(twin.History, func(a, b v1beta1.HistoryValue) int { return int(a.Number - b.Number) }) {
				t.Fatalf("seed %d: the history of %s is not in order: %v", seed, twin.PropertyName, twin.History)
			}
		}
	}
}

func TestAnotherDatabaseCountsAnew(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	reports := func(version uint64, value string) *wire.DeviceReport {
		return &wire.DeviceReport{State: "online", Properties: []*wire.PropertyReport{{
			Name: "a", Version: version, Reported: &wire.PropertyValue{Value: value}, History: []*wire.HistoryValue{{Number: version, Value: value}}, HistoryDropped: version,
		}}}
	}
	was := Merge(&v1beta1.DeviceStatus{}, spec(), reports(90, "old"), v1beta1.StatusWriter{Node: "n", Epoch: 1, Store: "one"}, now)
	for _, by := range []v1beta1.StatusWriter{{Node: "n", Epoch: 2, Store: "two"}, {Node: "m", Epoch: 1, Store: "one"}} {
		silent := Merge(was, spec(), &wire.DeviceReport{State: "offline"}, by, now)
		if tw := silent.Twins[0]; tw.Reported.Value != "old" || tw.Version != 0 || tw.History != nil || *silent.Writer != by {
			t.Errorf("%v, before it says anything of the property: %+v", by, tw)
		}
		s := Merge(was, spec(), reports(1, "new"), by, now)
		if tw := s.Twins[0]; tw.Reported.Value != "new" || tw.Version != 1 || len(tw.History) != 1 || tw.HistoryDropped != 1 {
			t.Errorf("%v: %+v", by, tw)
		}
	}
	// The next session of the same database goes on.
	s := Merge(was, spec(), reports(91, "next"), v1beta1.StatusWriter{Node: "n", Epoch: 2, Store: "one"}, now)
	if tw := s.Twins[0]; tw.Version != 91 || len(tw.History) != 2 || s.Writer.Epoch != 2 {
		t.Errorf("the next session: %+v", tw)
	}
}

func TestANodesClockIsNotTrusted(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	before := now.Add(-time.Hour)
	status := Merge(&v1beta1.DeviceStatus{}, spec(), &wire.DeviceReport{LastHeardUnixMs: before.UnixMilli()}, v1beta1.StatusWriter{}, now)
	for said, want := range map[int64]time.Time{
		0: before, 5: before, // a board without a battery
		now.Add(-time.Minute).UnixMilli():   now.Add(-time.Minute),
		now.Add(24 * time.Hour).UnixMilli(): now,
	} {
		s := Merge(status, spec(), &wire.DeviceReport{LastHeardUnixMs: said}, v1beta1.StatusWriter{}, now)
		if !s.LastOnlineTime.Time.Equal(want) {
			t.Errorf("heard at %s: %s, want %s", time.UnixMilli(said).UTC(), s.LastOnlineTime, want)
		}
	}
}

func TestASilentNodesDevicesAreAsTheyWereAfterwards(t *testing.T) {
	was := &v1beta1.DeviceStatus{State: v1beta1.StateOnline, Reason: "there is no device model"}
	s := Silenced(was)
	if s.State != v1beta1.StateUnknown || s.Reason != v1beta1.ReasonNodeUnreachable || text(t, Restored(s)) != text(t, was) {
		t.Errorf("silenced %+v, restored %+v", s, Restored(s))
	}
	if m := Merge(s, spec(), &wire.DeviceReport{State: "offline"}, v1beta1.StatusWriter{}, time.Now()); m.State != v1beta1.StateOffline || m.Reason != "" || m.ReportedState != "" {
		t.Errorf("a report ends the silence: %+v", m)
	}
}

func TestAStatusThatIsTooLargeLosesTheOldestValues(t *testing.T) {
	long := make([]byte, 8<<10)
	for i := range long {
		long[i] = 'x'
	}
	s := &v1beta1.DeviceStatus{Twins: []v1beta1.Twin{{PropertyName: "a", Reported: &v1beta1.TwinProperty{Value: string(long)}}, {PropertyName: "b"}}}
	for i := range 1000 {
		s.Twins[0].History = append(s.Twins[0].History, v1beta1.HistoryValue{Number: int64(i), Value: string(long)})
		s.Twins[1].History = append(s.Twins[1].History, v1beta1.HistoryValue{Number: int64(i), Value: "1"})
	}
	if err := fit(s); err != nil {
		t.Fatal(err)
	}
	h := s.Twins[0].History
	if n := len(text(t, s)); n > maxStatus || len(h) == 0 || h[len(h)-1].Number != 999 || len(s.Twins[1].History) != 1000 {
		t.Errorf("%d bytes, %d and %d values", n, len(h), len(s.Twins[1].History))
	}
	s.Twins = nil
	for i := range 200 {
		s.Twins = append(s.Twins, v1beta1.Twin{PropertyName: fmt.Sprint(i), Reported: &v1beta1.TwinProperty{Value: string(long)}})
	}
	if err := fit(s); err == nil {
		t.Error("a status that cannot be made to fit is written")
	}
}

func TestDevicesSpreadAndStayWhereTheyAre(t *testing.T) {
	nodes := []string{"n1", "n2", "n3", "n4"}
	has, moved := map[string]int{}, 0
	for i := range 400 {
		d := &v1beta1.Device{}
		d.Namespace, d.Name = "shop", fmt.Sprint("d", i)
		node, err := choose(d, nodes)
		if err != nil {
			t.Fatal(err)
		}
		has[node]++
		if less, _ := choose(d, nodes[:3]); less != node && node != "n4" {
			moved++
		}
		if other, _ := choose(d, []string{"n4", "n2", "n1", "n3"}); other != node {
			t.Fatalf("device %d depends on the order: %s or %s", i, node, other)
		}
	}
	for _, n := range nodes {
		if has[n] < 50 {
			t.Errorf("nodes have %v", has)
		}
	}
	if moved > 0 {
		t.Errorf("%d devices move without need when a node goes", moved)
	}
}
