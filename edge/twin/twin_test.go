package twin

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

func property(kind v1beta1.PropertyType, minimum, maximum string) *Property {
	return &Property{ModelProperty: v1beta1.ModelProperty{Name: "p", Type: kind, AccessMode: v1beta1.ReadWrite, Minimum: minimum, Maximum: maximum}}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		p     *Property
		value string
		wrong string // "" for a good one
	}{
		{property(v1beta1.TypeInt, "", ""), "9223372036854775807", ""},
		{property(v1beta1.TypeInt, "", ""), "9223372036854775808", "whole number"},
		{property(v1beta1.TypeInt, "", ""), "1.0", "whole number"},
		{property(v1beta1.TypeInt, "", ""), "", "whole number"},
		{property(v1beta1.TypeInt, "", ""), " 1", "whole number"},
		{property(v1beta1.TypeInt, "9223372036854775806", ""), "9223372036854775805", "below"}, // which a float64 cannot tell apart
		{property(v1beta1.TypeInt, "", "1.5"), "2", "above"},
		{property(v1beta1.TypeInt, "-5", "5"), "-5", ""},
		{property(v1beta1.TypeDouble, "-40", "125"), "125", ""},
		{property(v1beta1.TypeDouble, "-40", "125"), "125.0001", "above"},
		{property(v1beta1.TypeDouble, "-40", "125"), "-40.1", "below"},
		{property(v1beta1.TypeDouble, "", ""), "1e308", ""},
		{property(v1beta1.TypeDouble, "", ""), "1e309", "finite"},
		{property(v1beta1.TypeDouble, "", ""), "Inf", "finite"},
		{property(v1beta1.TypeDouble, "", ""), "0x1p4", "finite"},
		{property(v1beta1.TypeDouble, "", ""), "1_000", "finite"},
		{property(v1beta1.TypeFloat, "", ""), "3.5e38", "finite"},
		{property(v1beta1.TypeFloat, "", ""), "1.5", ""},
		{property(v1beta1.TypeBoolean, "", ""), "true", ""},
		{property(v1beta1.TypeBoolean, "", ""), "True", "neither true nor false"},
		{property(v1beta1.TypeBoolean, "", ""), "1", "neither true nor false"},
		{property(v1beta1.TypeBytes, "", ""), "aGk=", ""},
		{property(v1beta1.TypeBytes, "", ""), "aGk", "base64"},
		{property(v1beta1.TypeString, "", ""), "", ""},
		{property(v1beta1.TypeString, "", ""), strings.Repeat("x", MaxValue), ""},
		{property(v1beta1.TypeString, "", ""), strings.Repeat("x", MaxValue+1), "limit"},
		{property(v1beta1.TypeString, "", ""), "a\xffb", "UTF-8"},
		{property(v1beta1.TypeStream, "", ""), "rtsp://camera/1", ""},
	} {
		err := tt.p.Check(Value{Text: tt.value})
		if (err == nil) != (tt.wrong == "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
			t.Errorf("%s [%s, %s] %.30q: %v, want %q", tt.p.Type, tt.p.Minimum, tt.p.Maximum, tt.value, err, tt.wrong)
		}
	}
	big := map[string]string{"k": strings.Repeat("m", MaxMetadata)}
	if err := property(v1beta1.TypeString, "", "").Check(Value{Text: "x", Metadata: big}); err == nil {
		t.Error("metadata without a bound is taken")
	}
}

// FuzzCheck: what is refused is refused in words that can be shown, and nothing that
// is taken is too long or no UTF-8.
func FuzzCheck(f *testing.F) {
	f.Add("INT", "-5", "5", "3")
	f.Add("DOUBLE", "", "1e3", "nan")
	f.Add("BYTES", "", "", "aGk=")
	f.Fuzz(func(t *testing.T, kind, minimum, maximum, value string) {
		err := property(v1beta1.PropertyType(kind), minimum, maximum).Check(Value{Text: value})
		if err == nil && (len(value) > MaxValue || !json.Valid(encode(t, value))) {
			t.Errorf("%q is taken", value)
		}
		if err != nil && strings.ToValidUTF8(err.Error(), "") != err.Error() {
			t.Errorf("the error %q is no text", err)
		}
	})
}

func encode(t *testing.T, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// heater is a definition in which the cloud desires these values.
func heater(desired map[string]string) *Definition {
	model := &v1beta1.DeviceModel{ObjectMeta: metav1.ObjectMeta{Name: "heater"}, Spec: v1beta1.DeviceModelSpec{Properties: []v1beta1.ModelProperty{
		{Name: "a", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite, Minimum: "0", Maximum: "9"},
		{Name: "b", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadWrite},
		{Name: "r", Type: v1beta1.TypeInt, AccessMode: v1beta1.ReadOnly},
	}}}
	d := &v1beta1.Device{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "d"}, Spec: v1beta1.DeviceSpec{DeviceModelRef: &v1beta1.LocalObjectReference{Name: "heater"}}}
	for _, name := range slices.Sorted(maps.Keys(desired)) {
		d.Spec.Properties = append(d.Spec.Properties, v1beta1.DeviceProperty{Name: name, Desired: &v1beta1.TwinProperty{Value: desired[name]}})
	}
	return Define(d, model)
}

// TestTheLastWordWinsInEveryHistory holds every history of a property against one
// sentence: the word that came last counts, and a word of the cloud comes when it
// changes.
func TestTheLastWordWinsInEveryHistory(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		def, tw := heater(nil), New()
		want, byEdge, cloud := "", false, ""
		var story []string
		for range 30 {
			text := fmt.Sprint(random.IntN(5))
			switch random.IntN(3) {
			case 0: // a program on the node
				e, err := tw.SetDesired(def, "a", Value{Text: text}, 1)
				if err != nil {
					t.Fatal(err)
				}
				tw = tw.With("a", e)
				want, byEdge = text, true
				story = append(story, "edge "+text)
			case 1: // the cloud's word comes, a new one or the same once more
				def = heater(map[string]string{"a": text})
				var refused []*RejectedError
				if tw, _, _, refused = tw.Follow(def, 1); len(refused) > 0 {
					t.Fatal(refused)
				}
				if text != cloud {
					want, byEdge, cloud = text, false, text
				}
				story = append(story, "cloud "+text)
			case 2: // the device says something, which changes no desire
				e, err := tw.Report(def, "a", Value{Text: text}, 1)
				if err != nil {
					t.Fatal(err)
				}
				tw = tw.With("a", e)
				story = append(story, "device "+text)
			}
			got, by := tw.Properties["a"].Desired()
			if want == "" && got == nil {
				continue
			}
			if got == nil || got.Text != want || by != byEdge {
				t.Fatalf("seed %d: after %q the desired value is %v (by edge %v), want %q (%v)", seed, story, got, by, want, byEdge)
			}
		}
	}
}

// TestWordsAboutDifferentPropertiesCommute: whatever the order in which they come, the
// twin is the same; and the cloud's word taken twice is taken once.
func TestWordsAboutDifferentPropertiesCommute(t *testing.T) {
	def := heater(map[string]string{"b": "3"})
	steps := []func(*Twin) *Twin{
		func(t *Twin) *Twin { e, _ := t.Report(def, "a", Value{Text: "1", At: 5}, 9); return t.With("a", e) },
		func(t *Twin) *Twin {
			e, _ := t.SetDesired(def, "a", Value{Text: "7", At: 6}, 9)
			return t.With("a", e)
		},
		func(t *Twin) *Twin { e, _ := t.Report(def, "r", Value{Text: "2", At: 7}, 9); return t.With("r", e) },
		func(t *Twin) *Twin { next, _, _, _ := t.Follow(def, 9); return next },
		func(t *Twin) *Twin { next, _, _, _ := t.Follow(def, 9); return next },
	}
	var first *Twin
	permute(len(steps), func(order []int) {
		tw := New()
		for _, i := range order {
			tw = steps[i](tw)
		}
		if first == nil {
			first = tw
		}
		if !reflect.DeepEqual(tw, first) {
			t.Fatalf("in the order %d: %s, in another %s", order, show(tw), show(first))
		}
	})
}

func show(t *Twin) string {
	b, err := json.Marshal(t.Properties)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func permute(n int, f func([]int)) {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	var from func(int)
	from = func(k int) {
		if k == n {
			f(order)
			return
		}
		for i := k; i < n; i++ {
			order[k], order[i] = order[i], order[k]
			from(k + 1)
			order[k], order[i] = order[i], order[k]
		}
	}
	from(0)
}

// TestNothingThatWasGivenIsChanged: whoever holds a twin may go on reading it.
func TestNothingThatWasGivenIsChanged(t *testing.T) {
	def := heater(map[string]string{"a": "3"})
	tw, _, _, _ := New().Follow(def, 1)
	e, _ := tw.Report(def, "r", Value{Text: "1"}, 1)
	tw = tw.With("r", e)
	before := show(tw)
	tw.Report(def, "r", Value{Text: "2"}, 2)
	tw.Report(def, "a", Value{Text: "99"}, 2)
	tw.SetDesired(def, "a", Value{Text: "5"}, 2)
	tw.Follow(heater(map[string]string{"a": "4"}), 2)
	tw.With("b", &Entry{})
	if after := show(tw); after != before {
		t.Errorf("%s has become %s", before, after)
	}
}

func TestARefusedWordOfTheCloudLeavesWhatIsInForce(t *testing.T) {
	tw, _, _, _ := New().Follow(heater(map[string]string{"a": "3"}), 1)
	tw, changed, _, refused := tw.Follow(heater(map[string]string{"a": "99", "r": "1"}), 2)
	if len(refused) != 2 || !slices.Contains(changed, "a") {
		t.Fatalf("refused %v, changed %v", refused, changed)
	}
	if v, _ := tw.Properties["a"].Desired(); v.Text != "3" || tw.Properties["a"].Rejected == nil {
		t.Errorf("%s", show(tw))
	}
	// Said again it is no news.
	if _, changed, _, refused := tw.Follow(heater(map[string]string{"a": "99", "r": "1"}), 3); len(changed)+len(refused) > 0 {
		t.Errorf("changed %v, refused %v", changed, refused)
	}
}

func TestPropertiesThatTheModelLosesEnd(t *testing.T) {
	def := heater(map[string]string{"a": "3"})
	tw, _, _, _ := New().Follow(def, 1)
	without := *def
	without.Properties = maps.Clone(def.Properties)
	delete(without.Properties, "a")
	next, _, gone, _ := tw.Follow(&without, 2)
	if !slices.Equal(gone, []string{"a"}) || next.Properties["a"] != nil {
		t.Errorf("gone %v, %s", gone, show(next))
	}
	// A model that is missing is another matter: unknown is not empty.
	missing := Define(def.Device, nil)
	if next, changed, gone, _ := tw.Follow(missing, 2); len(changed)+len(gone) > 0 || next != tw || missing.Problem == "" {
		t.Errorf("without a model: changed %v, gone %v, problem %q", changed, gone, missing.Problem)
	}
}

func TestARepeatedValueIsNoNews(t *testing.T) {
	def := heater(nil)
	tw := New()
	report := func(text string, at int64) uint64 {
		e, err := tw.Report(def, "a", Value{Text: text, At: at}, at)
		if err != nil && e == nil {
			t.Fatal(err)
		}
		tw = tw.With("a", e)
		return e.Version
	}
	if report("1", 1) != 1 || report("1", 2) != 1 || report("2", 3) != 2 {
		t.Error("versions do not count changes")
	}
	if report("99", 4) != 3 || report("99", 5) != 3 {
		t.Error("a refusal is told once")
	}
	if report("2", 6) != 4 || tw.Properties["a"].Rejected != nil {
		t.Error("a good value does not end a refusal")
	}
}
