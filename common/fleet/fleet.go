// Package fleet is what a hub tells people and programs of its nodes: JSON documents
// that cloudcore serves on its socket and behind its web page, and that `holdfast
// status` reads. It holds the documents' types and no logic. Times are the hub's.
package fleet

import "time"

// Where cloudcore serves the documents: on the socket of that name in its run
// directory, for root, and at the same paths behind its web page.
const (
	SocketName = "cloudcore.sock"
	Path       = "/fleet"        // a Fleet
	NodePath   = "/fleet/nodes/" // and the node's name: a Detail
)

// TokenFile is the name, in cloudcore's data directory, of the file with the token
// that lets whoever has it look at the web page.
const TokenFile = "fleet-token"

// OfflineReady is the type of the Node condition by which a node says whether it would
// survive an outage.
const OfflineReady = "OfflineReady"

// Fleet is every edge node of the cluster as one hub knows them.
type Fleet struct {
	Hub     string    `json:"hub"` // the hub that says so
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`
	Nodes   []Node    `json:"nodes"` // by name, unless another order was asked for
	// Counts are of all nodes; Matched is how many of them fit what was asked for, of
	// which Nodes may be a part that begins at Offset.
	Counts  Counts `json:"counts"`
	Matched int    `json:"matched"`
	Offset  int    `json:"offset,omitempty"`
	// Complete says that the hub has read which nodes there are: soon after its start
	// it may know only those that have connected or changed since.
	Complete bool `json:"complete"`
}

// Counts count nodes.
type Counts struct {
	All             int `json:"all"`
	Connected       int `json:"connected"` // to any hub
	Here            int `json:"here"`      // of these, to the hub that counts
	Offline         int `json:"offline"`
	NotOfflineReady int `json:"notOfflineReady"` // OfflineReady is not True
}

// Node is one edge node in a line. What only the hub that holds the node knows
// (Transport to BytesToday) is zero where another one does.
type Node struct {
	Name string `json:"name"`
	// Ready is the Node's condition: True, False or Unknown.
	Ready       string `json:"ready"`
	ReadyReason string `json:"readyReason,omitempty"`
	// Hub is the hub that holds the node or, where none does, held it last.
	Hub       string `json:"hub,omitempty"`
	Connected bool   `json:"connected"`
	// LastSeen is when the node was last heard; of another hub's nodes as their leases
	// said when this hub last looked, which it does for nodes that somebody looks at.
	LastSeen *time.Time `json:"lastSeen,omitempty"`
	// Since is when Connected became what it is, as far as is known.
	Since *time.Time `json:"since,omitempty"`

	Transport string  `json:"transport,omitempty"` // websocket or quic
	Remote    string  `json:"remote,omitempty"`
	RTTMillis float64 `json:"rttMillis,omitempty"`
	// BytesToday is what the node's line has moved since midnight UTC, or since this
	// hub started if that was later.
	BytesToday Bytes `json:"bytesToday"`

	// OfflineReady is the Node's condition of that name: True, False, Unknown, or empty
	// where the node has none.
	OfflineReady       string `json:"offlineReady,omitempty"`
	OfflineReadyReason string `json:"offlineReadyReason,omitempty"`

	Pods    PodCount `json:"pods"`
	Version string   `json:"version,omitempty"` // edgecore's
	Kubelet string   `json:"kubelet,omitempty"` // the kubelet version that it reports
	Runtime string   `json:"runtime,omitempty"`
	OS      string   `json:"os,omitempty"`
	Arch    string   `json:"arch,omitempty"`
}

// Bytes are bytes of a line, as Traffic of common/link counts them.
type Bytes struct {
	Down uint64 `json:"down"` // to the node
	Up   uint64 `json:"up"`
}

// PodCount counts a node's pods that have not ended.
type PodCount struct {
	Total int `json:"total"`
	Ready int `json:"ready"`
	// Unknown: this hub does not hold the node, and has not counted yet.
	Unknown bool `json:"unknown,omitempty"`
}

// Detail is one node with what there is to tell of it.
type Detail struct {
	Node
	Conditions []Condition `json:"conditions"`
	PodList    []Pod       `json:"podList"`
	// Line is what this hub has seen of the node's line lately, the oldest first.
	Line   []Span  `json:"line"`
	Events []Event `json:"events"` // of the node and its pods, the newest first
	// Remarks say what is missing here, and why.
	Remarks []string `json:"remarks,omitempty"`
}

// Condition is one condition of the Node.
type Condition struct {
	Type    string    `json:"type"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since"`
}

// Pod is one pod of a node.
type Pod struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	Phase      string   `json:"phase"`
	Ready      bool     `json:"ready"`
	Restarts   int32    `json:"restarts"`
	Reason     string   `json:"reason,omitempty"`
	Containers []string `json:"containers"`
}

// Span is a time in which a node was connected or not; To is nil for the present one.
type Span struct {
	From      time.Time  `json:"from"`
	To        *time.Time `json:"to,omitempty"`
	Connected bool       `json:"connected"`
	Transport string     `json:"transport,omitempty"`
}

// Event is a Kubernetes Event in a line.
type Event struct {
	At      time.Time `json:"at"`
	Type    string    `json:"type"`
	Object  string    `json:"object"` // kind/namespace/name; kind/name of what has no namespace
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	Count   int32     `json:"count"`
}
