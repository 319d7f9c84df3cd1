package v1beta1

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Device is one device beside a node.
type Device struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DeviceSpec   `json:"spec,omitempty"`
	Status DeviceStatus `json:"status,omitzero"`
}

// DeviceList lists devices.
type DeviceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Device `json:"items"`
}

// DeviceSpec says what the device is, where it is, and what it shall do.
type DeviceSpec struct {
	// DeviceModelRef names a DeviceModel of the same namespace.
	DeviceModelRef *LocalObjectReference `json:"deviceModelRef,omitempty"`
	// NodeName is the edge node that the device is connected to. Where it is empty
	// and NodeSelector is not, cloudcore chooses a node and writes it here.
	NodeName string `json:"nodeName,omitempty"`
	// NodeSelector chooses among the edge nodes by label.
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// Protocol says how a mapper reaches the device; empty for a device that speaks
	// MQTT itself.
	Protocol ProtocolConfig `json:"protocol,omitzero"`
	// Properties configure properties of the model. Those that are not listed have
	// the defaults of DeviceProperty.
	Properties []DeviceProperty `json:"properties,omitempty"`
}

// LocalObjectReference names an object of the same namespace.
type LocalObjectReference struct {
	Name string `json:"name"`
}

// ProtocolConfig names a protocol and what its mapper needs to know.
type ProtocolConfig struct {
	ProtocolName string     `json:"protocolName,omitempty"`
	ConfigData   *RawObject `json:"configData,omitempty"`
}

// DeviceProperty configures one property of a device.
type DeviceProperty struct {
	// Name is that of a property of the model.
	Name string `json:"name"`
	// Desired is what the property shall be; only for properties that may be written.
	Desired *TwinProperty `json:"desired,omitempty"`
	// Visitors says how a mapper reads and writes the property.
	Visitors VisitorConfig `json:"visitors,omitzero"`
	// ReportCycle is the shortest time between two reports to the cloud, and
	// CollectCycle that between two readings of the device, both in milliseconds;
	// 0: as edgecore and the mapper are configured.
	ReportCycle  int64 `json:"reportCycle,omitempty"`
	CollectCycle int64 `json:"collectCycle,omitempty"`
	// ReportToCloud says whether the cloud is told of the property; nil: it is.
	ReportToCloud *bool `json:"reportToCloud,omitempty"`
	// PushMethod is handed to the mapper as it is.
	PushMethod *RawObject `json:"pushMethod,omitempty"`
	// History keeps every reported value, not the latest alone.
	History *History `json:"history,omitempty"`
}

// VisitorConfig says how a mapper reads and writes a property.
type VisitorConfig struct {
	ProtocolName string     `json:"protocolName,omitempty"`
	ConfigData   *RawObject `json:"configData,omitempty"`
}

// History asks for all values of a property within a bound.
type History struct {
	// Limit is how many values the node keeps while it is offline, and how many the
	// status holds; beyond it the oldest is dropped and counted. 1 to MaxHistory.
	Limit int32 `json:"limit"`
}

// MaxHistory bounds History.Limit: an object of the apiserver has about 1.5 MiB.
const MaxHistory = 1000

// TwinProperty is a value with what is known about it.
type TwinProperty struct {
	Value string `json:"value"`
	// Metadata may hold "timestamp" (milliseconds since 1970, by the clock of whoever
	// set the value) and "type".
	Metadata map[string]string `json:"metadata,omitempty"`
}

// MetadataTimestamp is the key of a value's time, in milliseconds since 1970.
const MetadataTimestamp = "timestamp"

// DeviceState is what is known of a device's connection.
type DeviceState string

// States of a device.
const (
	StateOnline  DeviceState = "online"
	StateOffline DeviceState = "offline"
	// StateUnknown: nothing was ever heard, or the node cannot be heard.
	StateUnknown DeviceState = "unknown"
)

// Reasons that the cloud gives.
const (
	// ReasonNodeUnreachable: the node of the device is not Ready.
	ReasonNodeUnreachable = "NodeUnreachable"
	// ReasonNoNode: no edge node that is Ready matches the device's nodeSelector.
	ReasonNoNode = "NoMatchingNode"
)

// DeviceStatus is what the node said last.
type DeviceStatus struct {
	Twins []Twin      `json:"twins,omitempty"`
	State DeviceState `json:"state,omitempty"`
	// LastOnlineTime is when the device was last heard, by the node's clock.
	LastOnlineTime *metav1.Time `json:"lastOnlineTime,omitempty"`
	// LastReportTime is when the hub last wrote this, by the hub's clock.
	LastReportTime *metav1.Time `json:"lastReportTime,omitempty"`
	// ObservedGeneration is the generation of the spec that the node follows.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Reason says what stands in the way of the device as a whole, such as a model
	// that is missing.
	Reason string `json:"reason,omitempty"`
	// ReportedState and ReportedReason are what the node said last, while State is
	// unknown because the node cannot be heard (ReasonNodeUnreachable).
	ReportedState  DeviceState `json:"reportedState,omitempty"`
	ReportedReason string      `json:"reportedReason,omitempty"`
	// Writer is for hubs; see keps/0014-devices.md.
	Writer *StatusWriter `json:"writer,omitempty"`
}

// StatusWriter says under which claim of a node, and from which of its databases, a
// status was written.
type StatusWriter struct {
	Node  string `json:"node"`
	Epoch int64  `json:"epoch"`
	Store string `json:"store"`
}

// Twin is one property as the device reported it, and as it shall be.
type Twin struct {
	PropertyName string        `json:"propertyName"`
	Reported     *TwinProperty `json:"reported,omitempty"`
	// ObservedDesired is the desired value that is in force at the node: that of the
	// spec, or one that was set locally.
	ObservedDesired *TwinProperty `json:"observedDesired,omitempty"`
	// DesiredBy says who set ObservedDesired: cloud or edge.
	DesiredBy string `json:"desiredBy,omitempty"`
	// Overridden is a local desired value that lost against a newer one of the cloud.
	Overridden *TwinProperty `json:"overridden,omitempty"`
	// Rejected is the last value that was refused, and why.
	Rejected *RejectedValue `json:"rejected,omitempty"`
	// History holds the latest values, oldest first, of a property that asks for it.
	History []HistoryValue `json:"history,omitempty"`
	// HistoryDropped counts values that fell out of the bound before the cloud heard
	// of them.
	HistoryDropped int64 `json:"historyDropped,omitempty"`
	// Version counts the changes of this property at the node.
	Version int64 `json:"version,omitempty"`
}

// Who set a desired value.
const (
	ByCloud = "cloud"
	ByEdge  = "edge"
)

// HistoryValue is one reported value.
type HistoryValue struct {
	// Number counts the values of the property at the node, without a gap but for
	// what was dropped.
	Number int64  `json:"number"`
	Value  string `json:"value"`
	// Timestamp is in milliseconds since 1970, by the clock of the device or its node.
	Timestamp int64 `json:"timestamp"`
}

// RejectedValue is a value that was refused.
type RejectedValue struct {
	Value  string `json:"value"`
	Reason string `json:"reason"`
	// Desired: the value was a desired one; else a reported one.
	Desired bool `json:"desired,omitempty"`
	// Timestamp is when, in milliseconds since 1970, by the node's clock.
	Timestamp int64 `json:"timestamp"`
}

// RawObject is a JSON object that only a mapper understands.
type RawObject struct{ json.RawMessage }

// MarshalJSON writes what was read.
func (r RawObject) MarshalJSON() ([]byte, error) {
	if len(r.RawMessage) == 0 {
		return []byte("{}"), nil
	}
	return r.RawMessage, nil
}
