package dmi

import (
	"encoding/json"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestPackIsAsKubeEdgesEdgecorePacks: mappers decode by the type's name.
func TestPackIsAsKubeEdgesEdgecorePacks(t *testing.T) {
	packed, err := Pack([]byte(`{"ip":"127.0.0.1","port":1502,"scale":0.1,"isSwap":true,"serial":4294967297,"none":null,"com":{"baudRate":9600},"list":[1,"a"]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]proto.Message{
		"ip": wrapperspb.String("127.0.0.1"), "port": wrapperspb.Float(1502), "scale": wrapperspb.Float(0.1),
		"isSwap": wrapperspb.Bool(true), "serial": wrapperspb.Int64(4294967297),
	} {
		got, err := packed.Data[name].UnmarshalNew()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s = %v, %v; want %T %v", name, got, err, want, want)
		}
	}
	if url := packed.Data["port"].GetTypeUrl(); url != "type.googleapis.com/google.protobuf.FloatValue" {
		t.Errorf("a number's type is %s", url)
	}
	want := map[string]any{
		"ip": "127.0.0.1", "port": json.Number("1502"), "scale": json.Number("0.1"), "isSwap": true, "serial": json.Number("4294967297"),
		"com": map[string]any{"baudRate": json.Number("9600")}, "list": []any{json.Number("1"), "a"},
	}
	if got := Unpack(packed); !reflect.DeepEqual(got, want) {
		t.Errorf("Unpack: %#v\nwant %#v", got, want)
	}
}

func TestPackOfNothingIsAnEmptyMap(t *testing.T) {
	for _, object := range []string{"", " ", "{}", "null"} {
		if packed, err := Pack([]byte(object)); err != nil || packed == nil || packed.Data == nil || len(packed.Data) != 0 {
			t.Errorf("Pack(%q) = %v, %v", object, packed, err)
		}
	}
	for _, object := range []string{"[]", "1", "{", `{"n":1e400}`, `{"o":{"n":1e400}}`} {
		if packed, err := Pack([]byte(object)); packed == nil || packed.Data == nil {
			t.Errorf("Pack(%q) = %v, %v", object, packed, err)
		}
	}
}

func FuzzPack(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":[true,null,{"c":0.5}],"d":"x"}`))
	f.Add([]byte(`{"n":16777217,"e":1e38}`))
	f.Fuzz(func(t *testing.T, object []byte) {
		packed, err := Pack(object)
		if err != nil {
			return
		}
		b, err := proto.Marshal(packed)
		if err != nil {
			return // text that is not UTF-8
		}
		var back CustomizedValue
		if err := proto.Unmarshal(b, &back); err != nil {
			t.Fatalf("%q: %v", object, err)
		}
		if !reflect.DeepEqual(Unpack(&back), Unpack(packed)) {
			t.Fatalf("%q changed on its way", object)
		}
	})
}
