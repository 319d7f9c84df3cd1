package wire

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// Class is what bytes on the line are for.
type Class uint8

// The classes. ClassSession is what a session costs by itself: hello, welcome,
// inventories, acknowledgements, synced, goodbye and the results of reports.
const (
	ClassSession Class = iota
	ClassPod
	ClassConfigMap
	ClassSecret
	ClassNode
	ClassPodStatus
	ClassNodeStatus
	ClassEvent
	ClassToken
	ClassCertificate
	ClassDevice  // models and devices down, device reports up
	ClassMessage // routes, and what they carry
	classes
)

// String is the class as the value of a metric's label.
func (c Class) String() string {
	switch c {
	case ClassSession:
		return "session"
	case ClassPod:
		return "pod"
	case ClassConfigMap:
		return "configmap"
	case ClassSecret:
		return "secret"
	case ClassNode:
		return "node"
	case ClassPodStatus:
		return "pod_status"
	case ClassNodeStatus:
		return "node_status"
	case ClassEvent:
		return "event"
	case ClassToken:
		return "token"
	case ClassCertificate:
		return "certificate"
	case ClassDevice:
		return "device"
	case ClassMessage:
		return "message"
	}
	return "unknown"
}

// Meter counts the bytes of messages by what they are for. Its zero value is
// ready, it may be used from any goroutine, and it never allocates.
type Meter struct {
	sent, received [classes]atomic.Uint64
}

// Sent counts a message that was sent, with the length that Encode gave it.
func (m *Meter) Sent(msg proto.Message, encoded int) { count(&m.sent, msg, encoded) }

// Received counts a message that was received, with the length that it had on
// the line.
func (m *Meter) Received(msg proto.Message, encoded int) { count(&m.received, msg, encoded) }

// Each calls f with every class and its bytes so far, in the order of the
// classes and also where they are none.
func (m *Meter) Each(f func(c Class, sent, received uint64)) {
	for c := range classes {
		f(c, m.sent[c].Load(), m.received[c].Load())
	}
}

func count(to *[classes]atomic.Uint64, msg proto.Message, encoded int) {
	if encoded <= 0 {
		return
	}
	if down, ok := msg.(*HubMessage); ok {
		if changes := down.GetChanges(); changes != nil {
			countChanges(to, changes, uint64(encoded))
			return
		}
	}
	to[classOf(msg)].Add(uint64(encoded))
}

// countChanges shares the bytes out among the kinds in changes, as large as they
// are before they are encoded; what does not divide is the session's.
func countChanges(to *[classes]atomic.Uint64, changes *Changes, encoded uint64) {
	var weights [classes]uint64
	var sum uint64
	weigh := func(ref *ObjectRef, payload int) {
		w := uint64(payload + len(ref.GetNamespace()) + len(ref.GetName()) + len(ref.GetUid()) + len(ref.GetVersion()))
		weights[classOfKind(ref.GetKind())] += w
		sum += w
	}
	for _, o := range changes.GetUpserts() {
		weigh(o.GetRef(), len(o.GetPayload()))
	}
	for _, r := range changes.GetDeletes() {
		weigh(r, 0)
	}
	rest := encoded
	for c, w := range weights {
		if w > 0 {
			part := encoded * w / sum
			to[c].Add(part)
			rest -= part
		}
	}
	to[ClassSession].Add(rest)
}

// classOf says what a message other than Changes is for.
func classOf(msg proto.Message) Class {
	switch msg := msg.(type) {
	case *EdgeMessage:
		switch body := msg.GetBody().(type) {
		case *EdgeMessage_Report:
			return classOfReport(body.Report.GetKind())
		case *EdgeMessage_TokenAsk:
			return ClassToken
		case *EdgeMessage_CertificateAsk:
			return ClassCertificate
		case *EdgeMessage_Published:
			return ClassMessage
		}
	case *HubMessage:
		switch msg.GetBody().(type) {
		case *HubMessage_TokenAnswer:
			return ClassToken
		case *HubMessage_CertificateAnswer:
			return ClassCertificate
		case *HubMessage_Publish:
			return ClassMessage
		}
	}
	return ClassSession
}

func classOfKind(k Kind) Class {
	switch k {
	case Kind_KIND_POD:
		return ClassPod
	case Kind_KIND_CONFIG_MAP:
		return ClassConfigMap
	case Kind_KIND_SECRET:
		return ClassSecret
	case Kind_KIND_NODE:
		return ClassNode
	case Kind_KIND_DEVICE_MODEL, Kind_KIND_DEVICE:
		return ClassDevice
	case Kind_KIND_ROUTE:
		return ClassMessage
	}
	return ClassSession
}

func classOfReport(k ReportKind) Class {
	switch k {
	case ReportKind_REPORT_NODE:
		return ClassNodeStatus
	case ReportKind_REPORT_POD_STATUS, ReportKind_REPORT_POD_GONE:
		return ClassPodStatus
	case ReportKind_REPORT_EVENT:
		return ClassEvent
	case ReportKind_REPORT_DEVICE:
		return ClassDevice
	case ReportKind_REPORT_MESSAGES:
		return ClassMessage
	}
	return ClassSession
}
