// Package topic knows the MQTT topics of devices: KubeEdge's tree below $hw and
// Holdfast's own below holdfast, which topics a filter matches, and what a user may
// touch. edge/mqtt calls it. It is pure, and looks into no payload.
package topic

import (
	"strings"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/edge/twin"
)

// Kind is what a topic is for.
type Kind uint8

// Kinds of topics. Those from TwinUpdate to MembershipDetail are KubeEdge's, those
// from Report to SetOne Holdfast's; all of them are for edgecore to hear. Answer is
// any topic on which only edgecore speaks.
const (
	Other Kind = iota
	TwinUpdate
	TwinGet
	StateUpdate
	StateGet
	MembershipGet
	MembershipDetail
	Report
	ReportOne
	State
	Set
	SetOne
	Answer
)

// Limits of topics and filters, in bytes and levels.
const (
	MaxLength = 1024
	MaxLevels = 16
)

// KubeEdge says that a topic of this kind carries KubeEdge's payloads.
func (k Kind) KubeEdge() bool { return k >= TwinUpdate && k <= MembershipDetail }

// Own says that a topic of this kind is of Holdfast's scheme.
func (k Kind) Own() bool { return k >= Report && k <= SetOne }

// Name is a parsed topic.
type Name struct {
	Kind Kind
	// Key is the device, when the topic is about one.
	Key twin.Key
	// Property is that of ReportOne and SetOne.
	Property string
	// Node is that of MembershipGet and MembershipDetail.
	Node string
	// Old: it is KubeEdge's form of before there were namespaces, which means the
	// namespace default. What answers it has the same form.
	Old bool
}

// Prefixes of the two trees.
const (
	kubeEdgeDevice = "$hw/events/device/"
	kubeEdgeNode   = "$hw/events/node/"
	own            = "holdfast/"
)

// Suffixes that edgecore publishes below a device of KubeEdge's tree.
const (
	TwinUpdateResult  = "twin/update/result"
	TwinUpdateDelta   = "twin/update/delta"
	TwinDocument      = "twin/update/document"
	TwinGetResult     = "twin/get/result"
	TwinCloudUpdated  = "twin/cloud_updated"
	StateUpdateResult = "state/update/result"
	StateGetResult    = "state/get/result"
	DeviceUpdated     = "updated"
)

// Suffixes that edgecore publishes below the node of KubeEdge's tree.
const (
	MembershipGetResult    = "membership/get/result"
	MembershipDetailResult = "membership/detail/result"
	MembershipUpdated      = "membership/updated"
)

// hears are the suffixes that edgecore listens to below a device of KubeEdge's tree.
func hears(suffix string) Kind {
	switch suffix {
	case "twin/update":
		return TwinUpdate
	case "twin/get":
		return TwinGet
	case "state/update":
		return StateUpdate
	case "state/get":
		return StateGet
	case TwinUpdateResult, TwinUpdateDelta, TwinDocument, TwinGetResult, TwinCloudUpdated,
		StateUpdateResult, StateGetResult, DeviceUpdated, "twin/edge_updated":
		return Answer
	}
	return Other
}

// Parse says what a topic is for.
func Parse(topic string) Name {
	if rest, ok := strings.CutPrefix(topic, kubeEdgeDevice); ok {
		return parseDevice(rest)
	}
	if rest, ok := strings.CutPrefix(topic, kubeEdgeNode); ok {
		return parseNode(rest)
	}
	if rest, ok := strings.CutPrefix(topic, own); ok {
		return parseOwn(rest)
	}
	return Name{}
}

func parseDevice(rest string) Name {
	first, rest, ok := strings.Cut(rest, "/")
	if !ok || first == "" {
		return Name{}
	}
	if second, suffix, ok := strings.Cut(rest, "/"); ok && second != "" {
		if kind := hears(suffix); kind != Other {
			return Name{Kind: kind, Key: twin.Key{Namespace: first, Name: second}}
		}
	}
	if kind := hears(rest); kind != Other {
		return Name{Kind: kind, Key: twin.Key{Namespace: DefaultNamespace, Name: first}, Old: true}
	}
	return Name{}
}

// DefaultNamespace is the one of KubeEdge's topics that name none.
const DefaultNamespace = "default"

func parseNode(rest string) Name {
	node, suffix, ok := strings.Cut(rest, "/")
	if !ok || node == "" {
		return Name{}
	}
	switch suffix {
	case "membership/get":
		return Name{Kind: MembershipGet, Node: node}
	case "membership/detail":
		return Name{Kind: MembershipDetail, Node: node}
	case MembershipGetResult, MembershipDetailResult, MembershipUpdated:
		return Name{Kind: Answer, Node: node}
	}
	return Name{}
}

func parseOwn(rest string) Name {
	parts := strings.Split(rest, "/")
	for _, p := range parts {
		if p == "" {
			return Name{}
		}
	}
	if len(parts) == 2 && parts[1] == "state" {
		return Name{Kind: Answer, Node: parts[0]}
	}
	if len(parts) != 3 && len(parts) != 4 {
		return Name{}
	}
	n := Name{Key: twin.Key{Namespace: parts[0], Name: parts[1]}}
	one := len(parts) == 4
	if one {
		n.Property = parts[3]
	}
	switch word := parts[2]; {
	case word == "report" && one:
		n.Kind = ReportOne
	case word == "report":
		n.Kind = Report
	case word == "set" && one:
		n.Kind = SetOne
	case word == "set":
		n.Kind = Set
	case word == "state" && !one:
		n.Kind = State
	case word == "desired", word == "result" && !one:
		n.Kind = Answer
	default:
		return Name{}
	}
	return n
}

// KubeEdge is the topic of a device in KubeEdge's tree; old is Name.Old.
func KubeEdge(key twin.Key, old bool, suffix string) string {
	if old {
		return kubeEdgeDevice + key.Name + "/" + suffix
	}
	return kubeEdgeDevice + key.Namespace + "/" + key.Name + "/" + suffix
}

// Node is a topic about this node in KubeEdge's tree.
func Node(node, suffix string) string { return kubeEdgeNode + node + "/" + suffix }

// NodeState is where edgecore says whether it is online, as a will too.
func NodeState(node string) string { return own + node + "/state" }

// Desired is where the desired values of a device are, as one object.
func Desired(key twin.Key) string { return own + key.String() + "/desired" }

// DesiredOne is where one of them is, as text.
func DesiredOne(key twin.Key, property string) string { return Desired(key) + "/" + property }

// Result is where answers about a device are.
func Result(key twin.Key) string { return own + key.String() + "/result" }

// Filters are those of all topics that edgecore hears at a node.
func Filters(node string) []string {
	filters := []string{
		Node(node, "membership/get"), Node(node, "membership/detail"),
		own + "+/+/report", own + "+/+/report/+", own + "+/+/set", own + "+/+/set/+", own + "+/+/state",
	}
	for _, suffix := range []string{"twin/update", "twin/get", "state/update", "state/get"} {
		filters = append(filters, kubeEdgeDevice+"+/+/"+suffix, kubeEdgeDevice+"+/"+suffix)
	}
	return filters
}

// Problem says why a topic or filter is not served; empty when it is.
func Problem(topic string) string {
	switch {
	case len(topic) > MaxLength:
		return "the topic is longer than 1024 bytes"
	case strings.Count(topic, "/") >= MaxLevels:
		return "the topic has more than 16 levels"
	case !utf8.ValidString(topic):
		return "the topic is not UTF-8"
	}
	return ""
}
