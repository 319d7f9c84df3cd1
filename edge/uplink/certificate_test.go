package uplink

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// fakeCredential is due until it has taken something.
type fakeCredential struct {
	mu    sync.Mutex
	asked []time.Time
	taken []string
	err   error // of the next Take
}

func (f *fakeCredential) Ask(hubTime time.Time) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, hubTime)
	if len(f.asked) == 1 {
		return nil, errors.New("the disk says no, the first time")
	}
	if len(f.taken) > 0 {
		return nil, nil
	}
	return fmt.Appendf(nil, "request %d", len(f.asked)), nil
}

func (f *fakeCredential) Take(cert, ca []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.err
	if f.err = nil; err == nil {
		f.taken = append(f.taken, string(cert)+" of "+string(ca))
	}
	return err
}

func certificateAnswer(id uint64, code wire.ResultCode, name string) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_CertificateAnswer{CertificateAnswer: &wire.CertificateAnswer{
		Id: id, Code: code, Certificate: []byte(name), Ca: []byte("ca"), Message: "said so"}}}
}

func TestCertificateIsAskedForUntilItIsThereAndTheSessionGoesOn(t *testing.T) {
	r := newRig(t)
	credential := &fakeCredential{err: errors.New("not of this key")}
	r.credential = credential
	r.start(t)
	p := r.accept(t)
	p.hello()
	w := welcome(true)
	w.GetWelcome().HubTimeUnixMs = 1234567890000
	p.send(w)
	next := func(asked uint64) *wire.CertificateAsk {
		t.Helper()
		a := p.recv().GetCertificateAsk()
		if a == nil || a.GetId() <= asked || !strings.HasPrefix(string(a.GetCsr()), "request ") {
			t.Fatalf("asked %v after %d", a, asked)
		}
		return a
	}
	a := next(0)
	p.send(certificateAnswer(a.GetId(), wire.ResultCode_RESULT_RETRY, ""))
	a = next(a.GetId())
	p.send(certificateAnswer(a.GetId(), wire.ResultCode_RESULT_REJECTED, ""))
	a = next(a.GetId())
	p.send(certificateAnswer(a.GetId(), wire.ResultCode_RESULT_ACCEPTED, "of another key"))
	a = next(a.GetId())
	// An answer to a request that is not the last one counts for nothing.
	p.send(certificateAnswer(a.GetId()-1, wire.ResultCode_RESULT_ACCEPTED, "old"), certificateAnswer(a.GetId(), wire.ResultCode_RESULT_ACCEPTED, "good"))
	r.eventually(t, "taken", func() bool {
		credential.mu.Lock()
		defer credential.mu.Unlock()
		return len(credential.taken) > 0
	})
	o := configMap(t, "a", "u1", "1")
	p.send(changes(1, []*wire.Object{o}))
	for { // a request may have been on its way
		m := p.recv()
		if m.GetAck().GetSeq() == 1 {
			break
		}
		if m.GetCertificateAsk() == nil {
			t.Fatalf("the edge said %v", m)
		}
	}
	credential.mu.Lock()
	defer credential.mu.Unlock()
	if len(credential.taken) != 1 || credential.taken[0] != "good of ca" {
		t.Errorf("took %q", credential.taken)
	}
	for _, at := range credential.asked {
		if at.Before(time.UnixMilli(1234567890000)) || at.After(time.UnixMilli(1234567890000).Add(time.Hour)) {
			t.Errorf("asked at %s, by another clock than the hub's", at)
		}
	}
}

func TestReportsWaitForTheClaim(t *testing.T) {
	r := newRig(t)
	put(t, r.store, wire.ReportKind_REPORT_POD_STATUS, "u1", "status")
	r.start(t)
	p := r.accept(t)
	p.hello()
	w := welcome(false)
	w.GetWelcome().ClaimFollows = true
	o := configMap(t, "a", "u1", "1")
	p.send(w, changes(1, []*wire.Object{o}))
	p.ack(1) // and no report before it, nor after
	p.send(changes(2, nil, o.Ref))
	p.ack(2)
	p.send(&wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: &wire.Claimed{Epoch: 7}}})
	if got := string(p.report().GetPayload()); got != "status" {
		t.Errorf("reported %q", got)
	}
}
