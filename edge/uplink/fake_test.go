package uplink

import (
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
