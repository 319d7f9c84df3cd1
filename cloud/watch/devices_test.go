package watch

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
)

// TestTheHubKnowsTheEndpointOfARoute, which no node is told.
func TestTheHubKnowsTheEndpointOfARoute(t *testing.T) {
	c := &Cluster{devices: &devices{routes: &pool[keptRoute]{place: keyOfObject, keep: keepRoute, objects: make(map[string]*keptRoute),
		same:    func(a, b *keptRoute) bool { return sameItem(a.item, b.item) },
		changed: func(string, *keptRoute, *keptRoute) {},
	}}}
	for _, url := range []string{"https://one.example", "https://two.example"} {
		c.devices.routes.event(&v1beta1.Route{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "sales", UID: "u"},
			Spec:       v1beta1.RouteSpec{Up: &v1beta1.UpRoute{Topic: "till/#", HTTP: &v1beta1.HTTPTarget{URL: url}}},
		}, false)
		if r := c.Route("shop", "sales"); r == nil || r.Spec.Up.HTTP.URL != url {
			t.Errorf("got %+v, want a route to %s", r, url)
		}
	}
}

// TestANodeThatIsNotThereLosesNoRoute: its labels are not known, and it may come back
// with those that it had.
func TestANodeThatIsNotThereLosesNoRoute(t *testing.T) {
	w := &roster.Wanted{Items: make(map[roster.ID]*roster.Item)}
	c := &Cluster{devices: &devices{
		shelf:  &shelved[keptDevice]{shelf: &shelf[keptDevice]{nodes: map[string]*lot[keptDevice]{"n": {known: true}}}},
		models: &pool[keptModel]{known: true},
		routes: &pool[keptRoute]{known: true, objects: map[string]*keptRoute{"shop/sales": {spec: v1beta1.RouteSpec{NodeSelector: map[string]string{"floor": "2"}}}}},
	}}
	if err := c.addDevices(w, "n", nil); err != nil || !w.DevicesUnknown {
		t.Errorf("what the node does not hold is known: %v, %v", !w.DevicesUnknown, err)
	}
}
