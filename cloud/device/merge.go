package device

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// Merge is the status of a device after a report of its node, which is not
// changed. Each property goes by its version, as its node's database counts it:
// the higher one counts, and a report that comes twice changes nothing. So reports
// of one database have one outcome in every order and grouping, but for what is
// said of the device as a whole (state, when it was heard, what it follows), which
// has no version: there the word that comes last counts, and reports of one device
// come in order. A status of another node or another database is where a new count
// begins: its values stay until the newcomer says others, its histories do not.
func Merge(was *v1beta1.DeviceStatus, spec *v1beta1.DeviceSpec, r *wire.DeviceReport, by v1beta1.StatusWriter, now time.Time) *v1beta1.DeviceStatus {
	s := *was
	s.Twins = slices.Clone(was.Twins) // what they lead to is replaced, never changed
	if s.Writer == nil || s.Writer.Node != by.Node || s.Writer.Store != by.Store {
		for i := range s.Twins {
			s.Twins[i].Version, s.Twins[i].History, s.Twins[i].HistoryDropped = 0, nil, 0
		}
		s.ObservedGeneration = 0
	}
	s.Writer = &by
	s.State, s.Reason = state(r.GetState()), r.GetReason()
	s.ReportedState, s.ReportedReason = "", ""
	s.ObservedGeneration = max(s.ObservedGeneration, r.GetObservedGeneration())
	s.LastOnlineTime = heard(s.LastOnlineTime, r.GetLastHeardUnixMs(), now)

	byName := make(map[string]v1beta1.Twin, len(s.Twins)+len(r.GetProperties()))
	for _, t := range s.Twins {
		byName[t.PropertyName] = t
	}
	for _, p := range r.GetProperties() {
		t := byName[p.GetName()]
		t.PropertyName = p.GetName()
		byName[p.GetName()] = mergeProperty(t, p)
	}
	limits := limitsOf(spec)
	s.Twins = s.Twins[:0]
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		t := byName[name]
		t.History = latest(t.History, limits[name])
		s.Twins = append(s.Twins, t)
	}
	return &s
}

// mergeProperty takes one property of a report. Its values go by the version, the
// history and what was dropped of it do not: they only grow.
func mergeProperty(t v1beta1.Twin, p *wire.PropertyReport) v1beta1.Twin {
	t.History = union(t.History, p.GetHistory())
	t.HistoryDropped = max(t.HistoryDropped, int64(p.GetHistoryDropped()))
	if int64(p.GetVersion()) <= t.Version {
		return t
	}
	t.Version = int64(p.GetVersion())
	t.Reported, t.ObservedDesired, t.Overridden = property(p.GetReported()), property(p.GetDesired()), property(p.GetOverridden())
	t.DesiredBy, t.Rejected = "", nil
	if p.GetDesired() != nil {
		t.DesiredBy = v1beta1.ByCloud
		if p.GetDesiredByEdge() {
			t.DesiredBy = v1beta1.ByEdge
		}
	}
	if v := p.GetRejected(); v != nil {
		t.Rejected = &v1beta1.RejectedValue{Value: v.GetValue(), Reason: p.GetRejectedReason(), Desired: p.GetRejectedDesired(), Timestamp: v.GetUnixMs()}
	}
	return t
}

// property is a value as the API has it: its time is a piece of metadata.
func property(v *wire.PropertyValue) *v1beta1.TwinProperty {
	if v == nil {
		return nil
	}
	out := &v1beta1.TwinProperty{Value: v.GetValue()}
	if len(v.GetMetadata()) > 0 || v.GetUnixMs() != 0 {
		out.Metadata = make(map[string]string, len(v.GetMetadata())+1)
		maps.Copy(out.Metadata, v.GetMetadata())
		if v.GetUnixMs() != 0 {
			out.Metadata[v1beta1.MetadataTimestamp] = strconv.FormatInt(v.GetUnixMs(), 10)
		}
	}
	return out
}

// state is one of the API's states.
func state(said string) v1beta1.DeviceState {
	switch s := v1beta1.DeviceState(said); s {
	case v1beta1.StateOnline, v1beta1.StateOffline:
		return s
	}
	return v1beta1.StateUnknown
}

// epochOfClocks is before every device: a clock that says less was never set.
var epochOfClocks = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// heard is when a device was last heard, as far as a node's clock can be believed:
// not before there was any, and not after now.
func heard(was *metav1.Time, unixMs int64, now time.Time) *metav1.Time {
	at := time.UnixMilli(unixMs)
	if unixMs <= 0 || at.Before(epochOfClocks) {
		return was
	}
	if at.After(now) {
		at = now
	}
	t := metav1.NewTime(at).Rfc3339Copy()
	return &t
}

// limitsOf are the lengths of histories; a property without one keeps none.
func limitsOf(spec *v1beta1.DeviceSpec) map[string]int {
	limits := make(map[string]int)
	for _, p := range spec.Properties {
		if p.History != nil {
			limits[p.Name] = int(min(max(p.History.Limit, 0), v1beta1.MaxHistory))
		}
	}
	return limits
}

// union is a history with values added, by number. What is there stays: a number
// is of one value.
func union(was []v1beta1.HistoryValue, more []*wire.HistoryValue) []v1beta1.HistoryValue {
	if len(more) == 0 {
		return was
	}
	all := slices.Clone(was)
	for _, v := range more {
		all = append(all, v1beta1.HistoryValue{Number: int64(v.GetNumber()), Value: v.GetValue(), Timestamp: v.GetUnixMs()})
	}
	slices.SortStableFunc(all, func(a, b v1beta1.HistoryValue) int { return cmp.Compare(a.Number, b.Number) })
	return slices.CompactFunc(all, func(a, b v1beta1.HistoryValue) bool { return a.Number == b.Number })
}

// latest is the end of a history.
func latest(h []v1beta1.HistoryValue, limit int) []v1beta1.HistoryValue {
	if limit == 0 {
		return nil
	}
	return h[max(0, len(h)-limit):]
}

// news says that a status says anything that another does not. When it was written
// is none.
func news(was, now *v1beta1.DeviceStatus) bool {
	a, b := *was, *now
	a.LastReportTime, b.LastReportTime = nil, nil
	return !apiequality.Semantic.DeepEqual(&a, &b)
}
