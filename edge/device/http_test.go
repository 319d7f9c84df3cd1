package device

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTheLocalAPI(t *testing.T) {
	n := newNode(t)
	n.apply(thermometer("shop"), aDevice("cellar"))
	n.await("cellar", "its model", usable)
	server := httptest.NewServer(n.Handler())
	defer server.Close()
	ask := func(method, path, body string, origin ...string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		must(t, err)
		for _, o := range origin {
			r.Header.Set("Origin", o)
		}
		answer, err := http.DefaultClient.Do(r)
		must(t, err)
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		must(t, err)
		return answer.StatusCode, string(b)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/devices", "", 200, `"name":"cellar"`},
		{"GET", "/devices/shop/cellar", "", 200, `"state":"unknown"`},
		{"GET", "/devices/shop/attic", "", 404, "no such device"},
		{"POST", "/devices/shop/cellar/report", `{"temperature": 21.50}`, 200, `"reported":"21.50"`},
		{"PUT", "/devices/shop/cellar/desired", `{"target": 19}`, 200, `"desired":"19","desiredBy":"edge"`},
		{"PUT", "/devices/shop/cellar/desired", `{"target": "19"}`, 200, `"desired":"19"`},
		{"PUT", "/devices/shop/cellar/desired", `{"target": 99}`, 422, "above the maximum 30"},
		{"PUT", "/devices/shop/cellar/desired", `{"temperature": 1}`, 422, "read-only"},
		{"PUT", "/devices/shop/cellar/desired", `{"target": null}`, 400, "no text, number, true or false"},
		{"PUT", "/devices/shop/cellar/desired", `{"target": [1]}`, 400, "no text, number, true or false"},
		{"PUT", "/devices/shop/cellar/desired", `{}`, 400, "names no property"},
		{"PUT", "/devices/shop/cellar/desired", `{"target": 1`, 400, "no JSON object"},
		{"PUT", "/devices/shop/cellar/desired", `{"target": "` + strings.Repeat("x", maxBody) + `"}`, 413, "more than"},
		{"PUT", "/devices/shop/attic/desired", `{"target": 1}`, 404, "no such device"},
		{"DELETE", "/devices/shop/cellar", "", 405, ""},
	} {
		status, body := ask(tt.method, tt.path, tt.body)
		if status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s %.40s: %d %s, want %d with %q", tt.method, tt.path, tt.body, status, body, tt.status, tt.want)
		}
	}
	if status, _ := ask("PUT", "/devices/shop/cellar/desired", `{"target": 20}`, "http://evil.example"); status != http.StatusForbidden {
		t.Errorf("a web page may steer devices: %d", status)
	}
}

// FuzzDecodeUpdates: whatever a body is, what comes out of it is text.
func FuzzDecodeUpdates(f *testing.F) {
	f.Add([]byte(`{"a": 1, "b": "x", "c": true}`))
	f.Add([]byte(`{"a": null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		updates, err := decodeUpdates(body)
		if (err == nil) != (len(updates) > 0) {
			t.Fatalf("%d updates and the error %v", len(updates), err)
		}
		for _, u := range updates {
			if !utf8.ValidString(u.Property) || utf8.Valid(body) && !utf8.ValidString(u.Value.Text) {
				t.Errorf("property %q, value %q of %q", u.Property, u.Value.Text, body)
			}
		}
	})
}
