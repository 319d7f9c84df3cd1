package topic

import (
	"strings"

	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Matches says whether a filter matches a topic (MQTT 3.1.1, 4.7). A wildcard in
// the first level matches no topic that begins with $.
func Matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && (strings.HasPrefix(filter, "+") || strings.HasPrefix(filter, "#")) {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fmore || !tmore {
			return fmore == tmore || fmore && frest == "#" // a/# matches a too
		}
		filter, topic = frest, trest
	}
}

// covers says whether outer matches all that inner does; it may say no where the
// answer is yes.
func covers(outer, inner string) bool {
	for {
		o, orest, omore := strings.Cut(outer, "/")
		if o == "#" {
			return true
		}
		i, irest, imore := strings.Cut(inner, "/")
		if i == "#" || o != "+" && o != i {
			return false
		}
		if !omore || !imore {
			return omore == imore || omore && orest == "#"
		}
		outer, inner = orest, irest
	}
}

// Covers says whether outer matches all that inner does, $ topics considered.
func Covers(outer, inner string) bool {
	if strings.HasPrefix(inner, "$") && (strings.HasPrefix(outer, "+") || strings.HasPrefix(outer, "#")) {
		return false
	}
	return covers(outer, inner)
}

// ValidFilter says whether a filter is one (MQTT 3.1.1, 4.7.1).
func ValidFilter(filter string) bool {
	if filter == "" || strings.ContainsRune(filter, 0) || Problem(filter) != "" {
		return false
	}
	levels := strings.Split(filter, "/")
	for n, level := range levels {
		if level == "+" || level == "#" && n == len(levels)-1 {
			continue
		}
		if strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

// User says what the user of a connection may touch.
type User struct {
	// Device is the device that it is; nil: it is a program, which serves several.
	Device *twin.Key
}

// ParseUser reads a user's name: NAMESPACE/NAME is that device.
func ParseUser(name string) User {
	namespace, device, found := strings.Cut(name, "/")
	if !found {
		return User{}
	}
	return User{Device: &twin.Key{Namespace: namespace, Name: device}}
}

// ownFilters are the filters of all that a device may touch.
func ownFilters(key twin.Key) []string {
	filters := []string{own + key.String() + "/#", kubeEdgeDevice + key.String() + "/#"}
	if key.Namespace == DefaultNamespace {
		for _, part := range []string{"twin", "state", "updated"} {
			filters = append(filters, kubeEdgeDevice+key.Name+"/"+part+"/#")
		}
	}
	return filters
}

// name says whether a name can be a level of a topic, and no wildcard.
func name(s string) bool { return s != "" && !strings.ContainsAny(s, "/+#") }

// MaySubscribe says whether the user may subscribe to a filter, or be sent what is
// published to a topic.
func (u User) MaySubscribe(filter string) bool {
	if u.Device == nil {
		return true
	}
	if !name(u.Device.Namespace) || !name(u.Device.Name) {
		return false
	}
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared {
		_, filter, _ = strings.Cut(rest, "/")
	}
	// KubeEdge's old form of one device can read like the new form of another one:
	// what the topic means counts.
	if n := Parse(filter); n.Kind != Other && n.Key != *u.Device {
		return false
	}
	for _, f := range ownFilters(*u.Device) {
		if covers(f, filter) {
			return true
		}
	}
	return false
}

// MayPublish says whether the user may publish to a topic. Nobody may speak in
// edgecore's place.
func (u User) MayPublish(topic string) bool {
	n := Parse(topic)
	if n.Kind == Answer || Problem(topic) != "" {
		return false
	}
	if u.Device == nil {
		return true
	}
	return u.MaySubscribe(topic)
}
