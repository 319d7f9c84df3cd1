package v1beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Route carries application messages between MQTT topics of edge nodes and the
// cloud. Exactly one of Up and Down is set.
type Route struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RouteSpec   `json:"spec,omitempty"`
	Status RouteStatus `json:"status,omitzero"`
}

// RouteList lists routes.
type RouteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Route `json:"items"`
}

// RouteSpec says what goes where.
type RouteSpec struct {
	// NodeName, or else NodeSelector, chooses edge nodes; both empty: all.
	NodeName     string            `json:"nodeName,omitempty"`
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	Up           *UpRoute          `json:"up,omitempty"`
	Down         *DownRoute        `json:"down,omitempty"`
}

// UpRoute carries what is published at a node to the cloud.
type UpRoute struct {
	// Topic is an MQTT topic filter, with + and #. Topics that begin with $ are never
	// routed.
	Topic string `json:"topic"`
	// HTTP or Event: where messages go.
	HTTP  *HTTPTarget  `json:"http,omitempty"`
	Event *EventTarget `json:"event,omitempty"`
	// Buffer bounds what the node keeps while it is offline; beyond it the oldest is
	// dropped and counted.
	Buffer RouteBuffer `json:"buffer,omitzero"`
}

// HTTPTarget is an endpoint that takes each message as one POST. The response must
// be 2xx; anything else is tried again, but for 400, 413 and 422.
type HTTPTarget struct {
	URL string `json:"url"`
}

// EventTarget makes each message an Event about the Node, in the Route's namespace.
type EventTarget struct {
	// Reason is the Event's, in UpperCamelCase.
	Reason string `json:"reason"`
	// Type is Normal (the default) or Warning.
	Type string `json:"type,omitempty"`
}

// RouteBuffer bounds what waits at a node.
type RouteBuffer struct {
	// Messages is how many; 0: DefaultRouteMessages.
	Messages int32 `json:"messages,omitempty"`
	// KiB is how much; 0: DefaultRouteKiB.
	KiB int32 `json:"kib,omitempty"`
}

// Defaults of RouteBuffer.
const (
	DefaultRouteMessages = 10000
	DefaultRouteKiB      = 4096
)

// DownRoute lets the cloud publish at a node: POST to cloudcore at
// /v1/routes/NAMESPACE/NAME/NODE, by whoever may create routes/messages.
type DownRoute struct {
	// Topic is where the node publishes the body, with QoS 1.
	Topic string `json:"topic"`
}

// RouteStatus counts by node.
type RouteStatus struct {
	Nodes []RouteNode `json:"nodes,omitempty"`
}

// RouteNode is what a node said of a route.
type RouteNode struct {
	Node string `json:"node"`
	// Dropped counts messages that fell out of the buffer.
	Dropped int64 `json:"dropped"`
}
