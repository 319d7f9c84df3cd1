package mapper

import (
	"testing"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

func TestWordsAreThoseOfDevices(t *testing.T) {
	for ours, theirs := range map[Type]v1beta1.PropertyType{
		Int: v1beta1.TypeInt, Float: v1beta1.TypeFloat, Double: v1beta1.TypeDouble, String: v1beta1.TypeString,
		Boolean: v1beta1.TypeBoolean, Bytes: v1beta1.TypeBytes, Stream: v1beta1.TypeStream,
	} {
		if string(ours) != string(theirs) {
			t.Errorf("%s is %s in Devices", ours, theirs)
		}
	}
	if string(Online) != string(v1beta1.StateOnline) || string(Offline) != string(v1beta1.StateOffline) ||
		readWrite != string(v1beta1.ReadWrite) || timestamp != v1beta1.MetadataTimestamp {
		t.Error("a word differs from that of Devices")
	}
}
