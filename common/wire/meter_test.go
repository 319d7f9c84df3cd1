package wire

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
)

func read(m *Meter) (sent, received map[Class]uint64) {
	sent, received = map[Class]uint64{}, map[Class]uint64{}
	m.Each(func(c Class, s, r uint64) {
		if s > 0 {
			sent[c] = s
		}
		if r > 0 {
			received[c] = r
		}
	})
	return sent, received
}

func TestEveryMessageIsCountedAsWhatItIsFor(t *testing.T) {
	report := func(k ReportKind) *EdgeMessage {
		return &EdgeMessage{Body: &EdgeMessage_Report{Report: &Report{Kind: k}}}
	}
	upsert := func(k Kind) *HubMessage {
		return &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Upserts: []*Object{object(k, "a", "b", "u", strings.Repeat("p", 1000))}}}}
	}
	for _, c := range []struct {
		msg  proto.Message
		want Class
	}{
		{&EdgeMessage{Body: &EdgeMessage_Hello{Hello: &Hello{}}}, ClassSession},
		{&EdgeMessage{Body: &EdgeMessage_Inventory{Inventory: &Inventory{}}}, ClassSession},
		{&EdgeMessage{Body: &EdgeMessage_Ack{Ack: &Ack{}}}, ClassSession},
		{&EdgeMessage{}, ClassSession},
		{(*EdgeMessage)(nil), ClassSession},
		{report(ReportKind_REPORT_NODE), ClassNodeStatus},
		{report(ReportKind_REPORT_POD_STATUS), ClassPodStatus},
		{report(ReportKind_REPORT_POD_GONE), ClassPodStatus},
		{report(ReportKind_REPORT_EVENT), ClassEvent},
		{report(77), ClassSession},
		{&EdgeMessage{Body: &EdgeMessage_TokenAsk{TokenAsk: &TokenAsk{}}}, ClassToken},
		{&EdgeMessage{Body: &EdgeMessage_CertificateAsk{CertificateAsk: &CertificateAsk{}}}, ClassCertificate},
		{&HubMessage{Body: &HubMessage_Welcome{Welcome: &Welcome{}}}, ClassSession},
		{&HubMessage{Body: &HubMessage_InventoryAsk{InventoryAsk: &InventoryAsk{}}}, ClassSession},
		{&HubMessage{Body: &HubMessage_Synced{Synced: &Synced{}}}, ClassSession},
		{&HubMessage{Body: &HubMessage_ReportResult{ReportResult: &ReportResult{}}}, ClassSession},
		{&HubMessage{Body: &HubMessage_Goodbye{Goodbye: &Goodbye{}}}, ClassSession},
		{&HubMessage{Body: &HubMessage_TokenAnswer{TokenAnswer: &TokenAnswer{}}}, ClassToken},
		{&HubMessage{Body: &HubMessage_CertificateAnswer{CertificateAnswer: &CertificateAnswer{}}}, ClassCertificate},
		{&HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Seq: 1}}}, ClassSession},
		{(*HubMessage)(nil), ClassSession},
		{upsert(Kind_KIND_POD), ClassPod},
		{upsert(Kind_KIND_CONFIG_MAP), ClassConfigMap},
		{upsert(Kind_KIND_SECRET), ClassSecret},
		{upsert(Kind_KIND_NODE), ClassNode},
		{upsert(77), ClassSession},
	} {
		var m Meter
		m.Sent(c.msg, 100)
		m.Received(c.msg, 23)
		sent, received := read(&m)
		if len(sent) != 1 || sent[c.want] != 100 {
			t.Errorf("%v: sent %v, want 100 for %s", c.msg, sent, c.want)
		}
		if len(received) != 1 || received[c.want] != 23 {
			t.Errorf("%v: received %v, want 23 for %s", c.msg, received, c.want)
		}
	}
}

func TestChangesOfSeveralKindsAreSharedOutBySize(t *testing.T) {
	msg := &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{
		Upserts: []*Object{
			object(Kind_KIND_POD, "a", "b", "u", strings.Repeat("p", 2975)),
			object(Kind_KIND_SECRET, "a", "b", "u", strings.Repeat("s", 975)),
		},
		Deletes: []*ObjectRef{{Kind: Kind_KIND_CONFIG_MAP, Namespace: "a", Name: "b", Uid: "u"}},
	}}}
	var m Meter
	m.Sent(msg, 1001) // compressed
	sent, _ := read(&m)
	var sum uint64
	for _, n := range sent {
		sum += n
	}
	if sum != 1001 {
		t.Fatalf("counted %d bytes in %v, want 1001", sum, sent)
	}
	if p, s := sent[ClassPod], sent[ClassSecret]; p < 735 || p > 755 || s < 245 || s > 255 {
		t.Errorf("shared out as %v, want three quarters for the pod and one for the secret", sent)
	}
	if sent[ClassSession] > 3 {
		t.Errorf("%d bytes of %v are nobody's", sent[ClassSession], sent)
	}
}

func TestAMeterCountsFromManyGoroutines(t *testing.T) {
	var m Meter
	var wg sync.WaitGroup
	msg := &EdgeMessage{Body: &EdgeMessage_Ack{Ack: &Ack{Seq: 1}}}
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				m.Sent(msg, 3)
				m.Received(msg, 5)
			}
		})
	}
	wg.Wait()
	sent, received := read(&m)
	if sent[ClassSession] != 12000 || received[ClassSession] != 20000 {
		t.Fatalf("counted %v and %v, want 12000 and 20000", sent, received)
	}
}

func TestClassesHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]Class{}
	var m Meter
	m.Each(func(c Class, _, _ uint64) {
		if other, ok := seen[c.String()]; ok || c.String() == "unknown" {
			t.Errorf("class %d is named %q, as %d is", c, c, other)
		}
		seen[c.String()] = c
	})
	if len(seen) != 12 {
		t.Errorf("%d classes, want 12", len(seen))
	}
}

func TestAMeterCostsNoMemoryToUse(t *testing.T) {
	var m Meter
	msg := &HubMessage{Body: &HubMessage_Changes{Changes: &Changes{Upserts: []*Object{object(Kind_KIND_POD, "a", "b", "u", "p")}}}}
	if n := testing.AllocsPerRun(100, func() { m.Sent(msg, 50) }); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}
