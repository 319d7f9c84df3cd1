package topic

import (
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/edge/twin"
)

func TestParse(t *testing.T) {
	pump := twin.Key{Namespace: "plant", Name: "pump"}
	for topic, want := range map[string]Name{
		"$hw/events/device/plant/pump/twin/update":          {Kind: TwinUpdate, Key: pump},
		"$hw/events/device/plant/pump/twin/get":             {Kind: TwinGet, Key: pump},
		"$hw/events/device/plant/pump/state/update":         {Kind: StateUpdate, Key: pump},
		"$hw/events/device/plant/pump/state/get":            {Kind: StateGet, Key: pump},
		"$hw/events/device/plant/pump/twin/update/result":   {Kind: Answer, Key: pump},
		"$hw/events/device/plant/pump/twin/update/document": {Kind: Answer, Key: pump},
		"$hw/events/device/plant/pump/twin/cloud_updated":   {Kind: Answer, Key: pump},
		"$hw/events/device/plant/pump/updated":              {Kind: Answer, Key: pump},
		"$hw/events/device/pump/twin/update":                {Kind: TwinUpdate, Key: twin.Key{Namespace: "default", Name: "pump"}, Old: true},
		"$hw/events/device/pump/twin/update/delta":          {Kind: Answer, Key: twin.Key{Namespace: "default", Name: "pump"}, Old: true},
		"$hw/events/device/pump/updated":                    {Kind: Answer, Key: twin.Key{Namespace: "default", Name: "pump"}, Old: true},
		"$hw/events/device/plant/twin/twin/update":          {Kind: TwinUpdate, Key: twin.Key{Namespace: "plant", Name: "twin"}},
		"$hw/events/node/pi-1/membership/get":               {Kind: MembershipGet, Node: "pi-1"},
		"$hw/events/node/pi-1/membership/detail":            {Kind: MembershipDetail, Node: "pi-1"},
		"$hw/events/node/pi-1/membership/updated":           {Kind: Answer, Node: "pi-1"},
		"holdfast/plant/pump/report":                        {Kind: Report, Key: pump},
		"holdfast/plant/pump/report/speed":                  {Kind: ReportOne, Key: pump, Property: "speed"},
		"holdfast/plant/pump/set":                           {Kind: Set, Key: pump},
		"holdfast/plant/pump/set/speed":                     {Kind: SetOne, Key: pump, Property: "speed"},
		"holdfast/plant/pump/state":                         {Kind: State, Key: pump},
		"holdfast/plant/pump/desired":                       {Kind: Answer, Key: pump},
		"holdfast/plant/pump/desired/speed":                 {Kind: Answer, Key: pump, Property: "speed"},
		"holdfast/plant/pump/result":                        {Kind: Answer, Key: pump},
		"holdfast/pi-1/state":                               {Kind: Answer, Node: "pi-1"},
		"holdfast/plant/pump/report/a/b":                    {},
		"holdfast/plant//report":                            {},
		"holdfast/plant/pump":                               {},
		"$hw/events/device/":                                {},
		"$hw/events/device/plant/pump":                      {},
		"$hw/events/upload/x":                               {},
		"anything/else":                                     {},
		"":                                                  {},
	} {
		if got := Parse(topic); got != want {
			t.Errorf("Parse(%q) = %+v, want %+v", topic, got, want)
		}
	}
}

func TestWhatEdgecoreHearsIsWhatItSubscribesTo(t *testing.T) {
	for _, topic := range []string{
		"$hw/events/device/a/b/twin/update", "$hw/events/device/b/twin/update", "$hw/events/device/a/b/twin/get",
		"$hw/events/device/a/b/state/update", "$hw/events/device/b/state/get", "$hw/events/node/n/membership/get",
		"holdfast/a/b/report", "holdfast/a/b/report/p", "holdfast/a/b/set", "holdfast/a/b/set/p", "holdfast/a/b/state",
	} {
		heard := 0
		for _, f := range Filters("n") {
			if Matches(f, topic) {
				heard++
			}
		}
		if k := Parse(topic).Kind; heard != 1 || k == Other || k == Answer {
			t.Errorf("%s: %d filters match, kind %d", topic, heard, k)
		}
	}
	for _, topic := range []string{KubeEdge(twin.Key{Namespace: "a", Name: "b"}, false, TwinUpdateResult), Desired(twin.Key{Namespace: "a", Name: "b"}), NodeState("n")} {
		for _, f := range Filters("n") {
			if Matches(f, topic) {
				t.Errorf("edgecore would hear itself: %s matches %s", f, topic)
			}
		}
	}
}

func TestMatchesAndCovers(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/+", "a/b", true}, {"a/+", "a/b/c", false}, {"a/#", "a", true}, {"a/#", "a/b/c", true},
		{"#", "a/b", true}, {"#", "$hw/a", false}, {"+/a", "$hw/a", false}, {"$hw/#", "$hw/a", true}, {"+", "", true},
		{"a/+/c", "a//c", true}, {"a", "a/b", false}, {"a/b", "a", false},
	} {
		if got := Matches(c.filter, c.topic); got != c.want {
			t.Errorf("Matches(%q, %q) = %t", c.filter, c.topic, got)
		}
	}
	for _, c := range []struct {
		outer, inner string
		want         bool
	}{
		{"a/#", "a/+/b", true}, {"a/#", "a/#", true}, {"a/+", "a/#", false}, {"a/+", "a/+", true}, {"a/b", "a/+", false},
		{"#", "+/b", true}, {"a/#", "#", false}, {"a/#", "a", true}, {"#", "$hw/#", false}, {"a/#", "+/x", false},
	} {
		if got := Covers(c.outer, c.inner); got != c.want {
			t.Errorf("Covers(%q, %q) = %t", c.outer, c.inner, got)
		}
	}
}

func TestADeviceTouchesItsOwnTopicsOnly(t *testing.T) {
	u := ParseUser("plant/pump")
	for _, f := range []string{
		"holdfast/plant/pump/#", "holdfast/plant/pump/desired/+", "$hw/events/device/plant/pump/twin/update/delta",
		"$share/g/holdfast/plant/pump/desired", "holdfast/plant/pump",
	} {
		if !u.MaySubscribe(f) {
			t.Errorf("it may not subscribe to %s", f)
		}
	}
	for _, f := range []string{
		"#", "+/#", "holdfast/#", "holdfast/plant/+/desired", "holdfast/+/pump/desired", "holdfast/plant/pump2/desired",
		"$hw/#", "$share/g/#", "$share/g/holdfast/#", "$SYS/#", "holdfast/plant/#", "$hw/events/device/pump/twin/update/delta",
	} {
		if u.MaySubscribe(f) {
			t.Errorf("it may subscribe to %s", f)
		}
	}
	for topic, want := range map[string]bool{
		"holdfast/plant/pump/report":               true,
		"holdfast/plant/pump/set/speed":            true,
		"$hw/events/device/plant/pump/twin/update": true,
		"holdfast/plant/pump/anything":             true,
		"holdfast/plant/pump/desired":              false,
		"holdfast/plant/pump/result":               false,
		"holdfast/plant/fan/report":                false,
		"$hw/events/device/plant/fan/twin/update":  false,
		"other": false,
	} {
		if got := u.MayPublish(topic); got != want {
			t.Errorf("MayPublish(%s) = %t", topic, got)
		}
	}
	program := ParseUser("dashboard")
	if !program.MaySubscribe("#") || !program.MayPublish("holdfast/plant/fan/set") || program.MayPublish("holdfast/plant/fan/desired") {
		t.Error("a program may do too little or too much")
	}
	for _, odd := range []string{"/", "+/+", "a/", "/b", "#/x", "a/b/c"} {
		if u := ParseUser(odd); u.MaySubscribe("holdfast/a/b/report") || u.MayPublish("holdfast/a/b/report") || u.MayPublish("x") {
			t.Errorf("user %q may touch something", odd)
		}
	}
}

// A device in the namespace default, whose name is a namespace, in KubeEdge's old
// form: plant/twin/... must not reach the device twin of the namespace plant.
func TestTheOldFormLeadsToNoOtherDevice(t *testing.T) {
	u := ParseUser("default/plant")
	for topic, want := range map[string]bool{
		"$hw/events/device/plant/twin/update":        true,
		"$hw/events/device/plant/twin/twin/update":   false,
		"$hw/events/device/plant/state/twin/update":  false,
		"$hw/events/device/plant/state/state/update": false,
	} {
		if got := u.MayPublish(topic); got != want {
			t.Errorf("MayPublish(%s) = %t", topic, got)
		}
	}
}

func FuzzTopics(f *testing.F) {
	f.Add("$hw/events/device/plant/pump/twin/update", "holdfast/+/#", "plant/pump")
	f.Add("holdfast/plant/pump/report/x", "$share/g/#", "a")
	f.Fuzz(func(t *testing.T, topic, filter, user string) {
		n := Parse(topic)
		if n.Kind != Other && n.Key.Name == "" && n.Node == "" {
			t.Errorf("%q is about nothing", topic)
		}
		if n.Kind == ReportOne && n.Property == "" {
			t.Errorf("%q names no property", topic)
		}
		u := ParseUser(user)
		if u.Device == nil || strings.ContainsAny(topic, "+#") || !ValidFilter(filter) {
			return
		}
		if u.MaySubscribe(filter) && !strings.HasPrefix(filter, "$share/") && Matches(filter, topic) && !u.MaySubscribe(topic) {
			t.Errorf("user %q reaches %q by %q", user, topic, filter)
		}
		if k := Parse(topic); u.MayPublish(topic) && k.Kind != Other && k.Key != *u.Device {
			t.Errorf("user %q publishes to %q", user, topic)
		}
	})
}
