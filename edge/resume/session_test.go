package resume

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/common/wire"
)

func welcome(inSync bool) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_Welcome{Welcome: &wire.Welcome{ProtocolVersion: wire.ProtocolVersion, Session: "s1", InSync: inSync}}}
}

func changes(seq uint64, upserts []*wire.Object, deletes ...*wire.ObjectRef) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_Changes{Changes: &wire.Changes{Seq: seq, Upserts: upserts, Deletes: deletes}}}
}

func synced(digest []byte) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_Synced{Synced: &wire.Synced{Digest: digest}}}
}

func result(id uint64, code wire.ResultCode) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_ReportResult{ReportResult: &wire.ReportResult{Id: id, Code: code, Message: "said so"}}}
}

func goodbye(r wire.Goodbye_Reason) *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_Goodbye{Goodbye: &wire.Goodbye{Reason: r, Message: "bye"}}}
}

func inventoryAsk() *wire.HubMessage {
	return &wire.HubMessage{Body: &wire.HubMessage_InventoryAsk{InventoryAsk: &wire.InventoryAsk{}}}
}

// what names the actions of one step.
func what(actions []Action) string {
	var names []string
	for _, a := range actions {
		switch {
		case a.Welcome != nil:
			names = append(names, "welcome")
		case a.Inventory:
			names = append(names, "inventory")
		case a.Apply != nil:
			names = append(names, fmt.Sprint("apply ", a.Apply.GetSeq()))
		case a.Compare != nil:
			names = append(names, "compare")
		case a.Complete:
			names = append(names, "complete")
		case a.Result != nil:
			names = append(names, fmt.Sprint("result ", a.Result.GetId()))
		case a.Token != nil:
			names = append(names, fmt.Sprint("token ", a.Token.GetId()))
		}
	}
	return strings.Join(names, ", ")
}

func TestSessionAnswersEachMessage(t *testing.T) {
	digest := make([]byte, wire.DigestLen)
	otherVersion := welcome(false)
	otherVersion.GetWelcome().ProtocolVersion = wire.ProtocolVersion + 1
	for _, tt := range []struct {
		name   string
		before []*wire.HubMessage
		in     *wire.HubMessage
		want   string
		err    error
	}{
		{name: "welcome", in: welcome(false), want: "welcome"},
		{name: "welcome in sync", in: welcome(true), want: "welcome, complete"},
		{name: "welcome twice", before: []*wire.HubMessage{welcome(false)}, in: welcome(false), err: ErrProtocol},
		{name: "welcome in another version", in: otherVersion, err: ErrProtocol},
		{name: "changes before the welcome", in: changes(1, nil), err: ErrProtocol},
		{name: "synced before the welcome", in: synced(digest), err: ErrProtocol},
		{name: "inventory", before: []*wire.HubMessage{welcome(false)}, in: inventoryAsk(), want: "inventory"},
		{name: "first changes", before: []*wire.HubMessage{welcome(false)}, in: changes(1, nil), want: "apply 1"},
		{name: "next changes", before: []*wire.HubMessage{welcome(true), changes(1, nil)}, in: changes(2, nil), want: "apply 2"},
		{name: "a gap", before: []*wire.HubMessage{welcome(false), changes(1, nil)}, in: changes(3, nil), err: ErrProtocol},
		{name: "the same again", before: []*wire.HubMessage{welcome(false), changes(1, nil)}, in: changes(1, nil), err: ErrProtocol},
		{name: "not from the first", before: []*wire.HubMessage{welcome(false)}, in: changes(2, nil), err: ErrProtocol},
		{name: "synced", before: []*wire.HubMessage{welcome(false)}, in: synced(digest), want: "compare"},
		{name: "a result", before: []*wire.HubMessage{welcome(false)}, in: result(7, wire.ResultCode_RESULT_ACCEPTED), want: "result 7"},
		{name: "what a newer hub may say", in: &wire.HubMessage{}, want: ""},
		{name: "goodbye", in: goodbye(wire.Goodbye_REASON_BUSY), err: &GoodbyeError{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := new(Session)
			for _, m := range tt.before {
				if _, err := s.Receive(m); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Receive(tt.in)
			var bye *GoodbyeError
			switch {
			case tt.err == nil && err != nil, tt.err != nil && err == nil:
				t.Fatalf("error %v, want %v", err, tt.err)
			case tt.err != nil && !errors.Is(err, tt.err) && !errors.As(err, &bye):
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if what(got) != tt.want {
				t.Errorf("actions %q, want %q", what(got), tt.want)
			}
		})
	}
}

func TestDifferingDigestsEndTheSession(t *testing.T) {
	s := &Session{welcomed: true}
	if _, err := s.Compared(false); !errors.Is(err, ErrDifference) {
		t.Errorf("different: %v", err)
	}
	got, err := s.Compared(true)
	if err != nil || what(got) != "complete" {
		t.Errorf("equal: %q, %v", what(got), err)
	}
	if got, err = s.Compared(true); err != nil || len(got) != 0 {
		t.Errorf("equal again: %q, %v", what(got), err)
	}
}

func TestGoodbyeNamesTheRemedy(t *testing.T) {
	for reason := range wire.Goodbye_Reason_name {
		err := &GoodbyeError{wire.Goodbye_Reason(reason), "details"}
		if !strings.HasSuffix(err.Error(), ": details") || len(err.Error()) < len("the hub : details") {
			t.Errorf("reason %d: %q", reason, err)
		}
	}
	if err := (&GoodbyeError{Reason: wire.Goodbye_REASON_DUPLICATE}).Error(); !strings.Contains(err, "--node-name") {
		t.Errorf("a duplicate: %q", err)
	}
}

func TestInventoryIsCutIntoBoundedMessages(t *testing.T) {
	if got := Inventory(nil); len(got) != 1 || !got[0].GetInventory().GetLast() {
		t.Errorf("of nothing: %v", got)
	}
	var refs []*wire.ObjectRef
	for i := range 10000 {
		refs = append(refs, &wire.ObjectRef{Kind: wire.Kind_KIND_POD, Namespace: strings.Repeat("n", 30), Name: strings.Repeat("p", 200),
			Uid: fmt.Sprint("uid-", i), Version: make([]byte, wire.VersionLen)})
	}
	messages := Inventory(refs)
	var got []*wire.ObjectRef
	for i, m := range messages {
		b, err := wire.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > wire.SoftMessage+1024 {
			t.Errorf("message %d has %d bytes", i, len(b))
		}
		if last := m.GetInventory().GetLast(); last != (i == len(messages)-1) {
			t.Errorf("message %d of %d: last is %v", i, len(messages), last)
		}
		got = append(got, m.GetInventory().GetItems()...)
	}
	if len(got) != len(refs) || !bytes.Equal(wire.Digest(got), wire.Digest(refs)) {
		t.Errorf("%d of %d references arrived", len(got), len(refs))
	}
}

func TestNoReportBeforeTheClaim(t *testing.T) {
	s := new(Session)
	step := func(m *wire.HubMessage, want bool) {
		t.Helper()
		if _, err := s.Receive(m); err != nil {
			t.Fatal(err)
		}
		if s.MayReport() != want {
			t.Fatalf("after %T reports may go: %v", m.GetBody(), !want)
		}
	}
	if s.MayReport() {
		t.Fatal("reports may go before the welcome")
	}
	waiting := welcome(true)
	waiting.GetWelcome().ClaimFollows = true
	step(waiting, false)
	step(changes(1, nil), false)
	before := s.Clone()
	step(&wire.HubMessage{Body: &wire.HubMessage_Claimed{Claimed: &wire.Claimed{Epoch: 3}}}, true)
	if before.MayReport() {
		t.Error("a clone has changed with its original")
	}
	s = new(Session)
	step(welcome(true), true)
}
