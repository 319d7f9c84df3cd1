package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/common/api/devices/v1beta1"
	"github.com/holdfast-edge/holdfast/tests/scene"
	"github.com/holdfast-edge/holdfast/tests/world"
)

const thermostat = `{"protocol": "mqtt", "properties": [
	{"name": "target", "type": "INT", "accessMode": "ReadWrite", "minimum": "5", "maximum": "30", "unit": "°C"},
	{"name": "temperature", "type": "DOUBLE", "accessMode": "ReadOnly", "minimum": "-40", "maximum": "125", "unit": "°C"}]}`

// aThermostat makes a device of the model at a node.
func aThermostat(s *scene.Scene, n *world.Node, name string) {
	s.CreateObject("devices", name, fmt.Sprintf(`{"deviceModelRef": {"name": "thermostat"}, "nodeName": %q,
		"properties": [{"name": "target", "desired": {"value": "20"}}, {"name": "temperature", "history": {"limit": 1000}}]}`, n.Name))
}

func TestADeviceIsSteeredFromTheCloudAndGoesOnOffline(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-story", world.NodeOptions{})
	s.CreateObject("devicemodels", "thermostat", thermostat)
	aThermostat(s, n, "cellar")
	topic := func(rest string) string { return "holdfast/" + s.NS + "/cellar/" + rest }

	// Down and up.
	s.Message(n, topic("desired/target"), "20")
	s.Publish(n, topic("report"), `{"temperature": 19.5, "target": 20}`)
	s.Device("cellar", "19.5 is reported", func(d *v1beta1.Device) bool {
		return scene.Reported(d, "temperature") == "19.5" && scene.Reported(d, "target") == "20" && d.Status.State == v1beta1.StateOnline
	})
	if out := s.Kubectl("get", "devices"); !strings.Contains(out, "thermostat") || !strings.Contains(out, n.Name) || !strings.Contains(out, "online") {
		t.Errorf("kubectl get devices shows\n%s", out)
	}
	s.Desire("cellar", "21")
	s.Message(n, topic("desired/target"), "21")

	// A value that cannot be has one answer, and an Event.
	s.Publish(n, topic("report/temperature"), "999")
	s.Until("an Event tells of the refused value", func(context.Context) (bool, error) {
		return strings.Contains(s.Kubectl("get", "events", "--field-selector", "reason=ValueRejected"), "above the maximum 125"), nil
	})

	// The line is cut: the device is steered by a program on the node, over MQTT and
	// over HTTP, and everything it says is kept.
	s.Must(n.Cut())
	s.Publish(n, topic("set/target"), "17")
	s.Message(n, topic("desired/target"), "17")
	if status, answer, err := s.Local(n, http.MethodPut, "cellar/desired", `{"target": 18}`); err != nil || status != http.StatusOK {
		t.Fatalf("over HTTP: %d, %s, %v", status, answer, err)
	}
	s.Message(n, topic("desired/target"), "18")
	var lines []string
	for i := range 500 {
		lines = append(lines, fmt.Sprint(i%100))
	}
	s.PublishLines(n, topic("report/temperature"), lines)
	s.Publish(n, topic("report/target"), "18")
	if out := s.AtNode(n, "devices", s.NS+"/cellar"); !strings.Contains(out, "edge") || !strings.Contains(out, "500 values wait") {
		t.Errorf("holdfast devices shows\n%s", out)
	}
	// Meanwhile the cloud says something else about the same property, and the node
	// loses its power.
	s.Desire("cellar", "25")
	s.Must(n.PowerCut())
	s.Must(n.Boot(s.Ctx))
	s.Message(n, topic("desired/target"), "18")

	s.Must(n.Mend())
	s.Message(n, topic("desired/target"), "25")
	d := s.Device("cellar", "the whole history, and who won", func(d *v1beta1.Device) bool {
		target, history := scene.TwinOf(d, "target"), scene.TwinOf(d, "temperature").History
		return target.Overridden != nil && target.ObservedDesired.Value == "25" && scene.Reported(d, "target") == "18" &&
			len(history) > 0 && history[len(history)-1].Number == 501
	})
	target, temperature := scene.TwinOf(d, "target"), scene.TwinOf(d, "temperature")
	if target.DesiredBy != v1beta1.ByCloud || target.Overridden.Value != "18" {
		t.Errorf("target %+v", target)
	}
	if len(temperature.History) != 501 || temperature.HistoryDropped != 0 {
		t.Fatalf("%d values in the history, %d dropped, want all 501", len(temperature.History), temperature.HistoryDropped)
	}
	for i, v := range temperature.History[1:] {
		if v.Value != lines[i] || v.Number != int64(i+2) {
			t.Fatalf("value %d is %+v, want %s", i, v, lines[i])
		}
	}

	s.DeleteObject("devices", "cellar")
	s.Until("the node has forgotten the device", func(context.Context) (bool, error) {
		return strings.Contains(s.AtNode(n, "devices"), "no devices"), nil
	})
}

// TestADeviceProgramOfKubeEdgeRuns: its topics and payloads.
func TestADeviceProgramOfKubeEdgeRuns(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-kubeedge", world.NodeOptions{})
	s.CreateObject("devicemodels", "thermostat", thermostat)
	aThermostat(s, n, "attic")
	s.Message(n, "holdfast/"+s.NS+"/attic/desired/target", "20")
	topic := "$hw/events/device/" + s.NS + "/attic/twin/update"
	s.Publish(n, topic, `{"event_id":"1","timestamp":0,"twin":{"temperature":{"actual":{"value":"22.5"},"metadata":{"type":"double"}}}}`)
	s.Device("attic", "22.5 is reported", func(d *v1beta1.Device) bool { return scene.Reported(d, "temperature") == "22.5" })
}

func TestMessagesAreRoutedAlsoThoseOfAnOutage(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-route", world.NodeOptions{})
	var mu sync.Mutex
	var got []string
	listener, err := net.Listen("tcp", net.JoinHostPort(s.World.Bridge.Addr().String(), "0"))
	s.Must(err)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 100)
		count, _ := r.Body.Read(b)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Header.Get("Holdfast-Topic")+" "+string(b[:count]))
	})}}
	server.Start()
	t.Cleanup(server.Close)
	s.CreateObject("routes", "sales", fmt.Sprintf(`{"nodeName": %q, "up": {"topic": "till/+/sold", "http": {"url": "http://%s/sales"}}}`, n.Name, listener.Addr()))
	s.Until("the broker runs", func(context.Context) (bool, error) {
		return n.Netns.Command("mosquitto_pub", "-q", "1", "-t", "other", "-m", "x").Run() == nil, nil
	})
	await := func(want int) {
		s.Until(fmt.Sprintf("%d messages have come", want), func(context.Context) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return len(got) >= want, nil
		})
	}
	s.Until("the route is in force", func(context.Context) (bool, error) {
		s.Publish(n, "till/1/sold", "first")
		mu.Lock()
		defer mu.Unlock()
		return len(got) > 0, nil
	})
	s.Must(n.Cut())
	var lines []string
	for i := range 300 {
		lines = append(lines, fmt.Sprint("apple ", i))
	}
	s.PublishLines(n, "till/2/sold", lines)
	s.Must(n.KillEdgecore())
	s.Must(n.StartEdgecore())
	s.Must(n.Mend())
	await(301)
	s.Until("all messages of the outage have come", func(context.Context) (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return got[len(got)-1] == "till/2/sold apple 299", nil
	})
	mu.Lock()
	defer mu.Unlock()
	next := 0
	for _, m := range got {
		if m == "till/2/sold "+fmt.Sprint("apple ", next) {
			next++
		}
	}
	if next != 300 {
		t.Errorf("%d of 300 messages came in their order: %q", next, got)
	}
}

// TestTheCloudPublishesAtANode: by a Route, by whoever may, while the node is there.
func TestTheCloudPublishesAtANode(t *testing.T) {
	t.Parallel()
	s := scene.New(t)
	n := s.Node("dev-down", world.NodeOptions{})
	s.CreateObject("routes", "prices", fmt.Sprintf(`{"nodeName": %q, "down": {"topic": "till/prices"}}`, n.Name))
	s.Kubectl("create", "serviceaccount", "shop")
	s.Kubectl("create", "role", "publisher", "--verb=create", "--resource=routes.devices.holdfast.io/messages")
	token := strings.TrimSpace(s.Kubectl("create", "token", "shop"))

	roots := x509.NewCertPool()
	secret, err := s.Client.CoreV1().Secrets("holdfast-system").Get(s.Ctx, "holdfast-ca", metav1.GetOptions{})
	s.Must(err)
	if !roots.AppendCertsFromPEM(secret.Data["tls.crt"]) {
		t.Fatal("no CA certificate in holdfast-system/holdfast-ca")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	post := func(token, body string) int {
		request, err := http.NewRequestWithContext(s.Ctx, http.MethodPost, "https://"+s.World.Hub()+"/v1/routes/"+s.NS+"/prices/"+n.Name, strings.NewReader(body))
		s.Must(err)
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := client.Do(request)
		s.Must(err)
		response.Body.Close()
		return response.StatusCode
	}
	if status := post("nobody", "x"); status != http.StatusUnauthorized {
		t.Errorf("with a token of nobody: %d", status)
	}
	if status := post(token, "x"); status != http.StatusForbidden {
		t.Errorf("without the right: %d", status)
	}
	s.Kubectl("create", "rolebinding", "publisher", "--role=publisher", "--serviceaccount="+s.NS+":shop")
	heard := make(chan string, 1)
	s.Until("the broker runs", func(context.Context) (bool, error) {
		return n.Netns.Command("mosquitto_pub", "-q", "1", "-t", "other", "-m", "x").Run() == nil, nil
	})
	go func() {
		out, err := n.Netns.Command("mosquitto_sub", "-q", "1", "-t", "till/prices", "-C", "1", "-W", "120").Output()
		heard <- fmt.Sprint(strings.TrimSpace(string(out)), err)
	}()
	s.Until("a message of the cloud is heard at the node", func(context.Context) (bool, error) {
		status := post(token, "apple 1.2") // again, until the subscription is there, too
		select {
		case got := <-heard:
			if got != "apple 1.2<nil>" {
				t.Fatalf("heard %q", got)
			}
			return status == http.StatusAccepted, nil
		default:
			return false, fmt.Errorf("status %d", status)
		}
	})
	s.Must(n.Cut())
	s.Until("who publishes at a node that is away is told so", func(context.Context) (bool, error) {
		status := post(token, "lost?")
		return status == http.StatusServiceUnavailable, fmt.Errorf("status %d", status)
	})
	s.Must(n.Mend())
	s.Until("the node is back", func(context.Context) (bool, error) { return post(token, "apple 1.3") == http.StatusAccepted, nil })
}
