package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// file writes a config file and returns its path.
func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestShortestEdgeConfigIsComplete(t *testing.T) {
	c, err := LoadEdge(file(t, "nodeName: pi-1\nhub: [hub.example.test]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultEdge()
	want.NodeName, want.Hub = "pi-1", []string{"hub.example.test:10350"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("loaded %+v,\nwant %+v", c, want)
	}
}

func TestNodeNameIsTheHostNameUnlessSet(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	c, err := LoadEdge(file(t, "hub: [\"192.0.2.1:10350\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeName != strings.ToLower(host) {
		t.Errorf("the name is %q, the host's %q", c.NodeName, host)
	}
}

func TestEmptyCloudConfigIsComplete(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "{}\n"} {
		c, err := LoadCloud(file(t, text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if !reflect.DeepEqual(c, DefaultCloud()) {
			t.Errorf("%q: loaded %+v", text, c)
		}
	}
}

func TestConfigsAreReadAsWritten(t *testing.T) {
	edge := DefaultEdge()
	edge.NodeName, edge.Hub = "pi-1", []string{"192.0.2.1:10350", "[2001:db8::1]:443"}
	edge.Labels = map[string]string{"holdfast.io/site": "shop"}
	edge.Taints = []string{"edge=true:NoSchedule", "lonely:NoExecute"}
	edge.KeepAlive = Duration{90 * time.Second}
	edge.ClusterDNS = []string{"10.96.0.10"}
	text, err := Encode(edge)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "keepAlive: 1m30s\n") {
		t.Errorf("written as:\n%s", text)
	}
	if got, err := LoadEdge(file(t, string(text))); err != nil || !reflect.DeepEqual(got, edge) {
		t.Errorf("read as %+v, %v; want %+v", got, err, edge)
	}
	cloud := DefaultCloud()
	cloud.Kubeconfig, cloud.AdvertiseAddresses = "/root/.kube/config", []string{"hub.example.test", "2001:db8::1"}
	if text, err = Encode(cloud); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadCloud(file(t, string(text))); err != nil || !reflect.DeepEqual(got, cloud) {
		t.Errorf("read as %+v, %v; want %+v", got, err, cloud)
	}
}

func TestMistakesAreNamedWithFileAndKey(t *testing.T) {
	const good = "nodeName: pi-1\nhub: [\"192.0.2.1:10350\"]\n"
	for text, want := range map[string]string{
		good + "keepalive: 5s":                             `unknown key "keepalive": did you mean "keepAlive"?`,
		good + "nodName: x":                                `unknown key "nodName": did you mean "nodeName"?`,
		good + "podsLogDir: /x":                            `did you mean "podLogsDir"?`,
		good + "zebra: 1":                                  `unknown key "zebra": known are cgroupDriver`,
		good + "keepAlive: 25":                             `write a number with its unit, like 25s`,
		good + "keepAlive: soon":                           `"soon" is not a duration`,
		good + "keepAlive: 10ms":                           `keepAlive: 10ms is not between 1s and 10m0s`,
		good + "statusInterval: 1ms":                       `statusInterval: 1ms`,
		good + "metricsListen: nine":                       `metricsListen: "nine" is not HOST:PORT`,
		good + "maxPods: many":                             `maxPods`,
		good + "maxPods: 0":                                `maxPods: 0 is not between`,
		good + "maxPods: 5\nmaxPods: 6":                    `already set`,
		good + "transport: pigeon":                         `transport: "pigeon" is unknown`,
		good + "dataDir: data":                             `dataDir: "data" is not an absolute path`,
		good + "logLevel: loud":                            `logLevel: "loud" is unknown`,
		good + "logFormat: xml":                            `logFormat: "xml" is unknown: use text or json`,
		good + "cgroupDriver: fs":                          `cgroupDriver: "fs" is unknown`,
		good + "nodeIP: here":                              `nodeIP: "here" is not an IP address`,
		good + "clusterDNS: [dns]":                         `clusterDNS: "dns" is not an IP address`,
		good + "containerRuntimeEndpoint: /run/x":          `is not of the form unix:///`,
		good + "taints: [a=b]":                             `taints: "a=b" is not of the form`,
		good + "taints: [\"a=b:Never\"]":                   `taints: "a=b:Never"`,
		good + "labels: {\"a b\": c}":                      `labels: "a b" is not a label key`,
		"nodeName: Pi_1\nhub: [a]":                         `nodeName: node name "Pi_1"`,
		"nodeName: pi-1":                                   `hub: no address of the hub`,
		"nodeName: pi-1\nhub: []":                          `hub: no address of the hub`,
		"nodeName: pi-1\nhub: [\"a:b\"]":                   `hub: "a:b"`,
		"nodeName: pi-1\nhub: [\":10350\"]":                `names no host`,
		"nodeName: pi-1\nhub: [\"a:0\"]":                   `is not a port`,
		"nodeName: pi-1\nhub: a:1":                         `hub`,
		"just words":                                       `not YAML of the form`,
		"\tnodeName: x":                                    `not YAML of the form`,
		"- a\n- b":                                         `not YAML of the form`,
		"nodeName: pi-1\nhub: [a]\nmaxPods: -1\nnodeIP: x": "maxPods: -1 is not between 1 and 1000\nnodeIP: \"x\"",
	} {
		path := file(t, text)
		_, err := LoadEdge(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q:\n%v\nwant the file's name and %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"kubeConfig: /x":                      `did you mean "kubeconfig"?`,
		"kubeconfig: x":                       `kubeconfig: "x" is not an absolute path`,
		"listen: here":                        `listen: "here" is not HOST:PORT`,
		"listen: 0.0.0.0:99999":               `is not a port`,
		"healthListen: x":                     `healthListen: "x"`,
		"fleetListen: x":                      `fleetListen: "x"`,
		"runDir: x":                           `runDir: "x" is not an absolute path`,
		"logFormat: xml":                      `logFormat: "xml" is unknown`,
		"advertiseAddresses: [a:1]":           `leave the port out`,
		"dataDir: x":                          `dataDir: "x"`,
		"nodeCertificateTTL: 1s":              `nodeCertificateTTL: 1s is not between 10s and 17520h0m0s`,
		"renewGrace: 87600h":                  `renewGrace: 87600h0m0s is not between 1s`,
		"keepAlive: 1h":                       `keepAlive: 1h0m0s is not between`,
		"logLevel: x":                         `logLevel: "x"`,
		"advertiseAddresses: {a: b}":          `advertiseAddresses`,
		"listen: a:1\nlisten: b:2":            `already set`,
		"nodeName: cloudcore has no such one": `unknown key "nodeName"`,
	} {
		path := file(t, text)
		_, err := LoadCloud(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q:\n%v\nwant the file's name and %q", text, err, want)
		}
	}
}

func TestMissingFileNamesTheRemedy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := LoadEdge(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "holdfast join") {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := LoadCloud(filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), filepath.Dir(path)) {
		t.Errorf("a folder: %v", err)
	}
}

func TestHubAddress(t *testing.T) {
	for in, want := range map[string]string{
		"":                 "",
		"hub":              "hub:10350",
		"hub:1":            "hub:1",
		"192.0.2.1":        "192.0.2.1:10350",
		"2001:db8::1":      "[2001:db8::1]:10350",
		"[2001:db8::1]":    "[2001:db8::1]:10350",
		"[2001:db8::1]:44": "[2001:db8::1]:44",
	} {
		if got := HubAddress(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestLogLevels(t *testing.T) {
	for text, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got, err := ParseLogLevel(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
}

// TestLogFormats: the daemons log as text or as JSON, and nothing else.
func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"": "msg=hello node=pi", "text": "msg=hello node=pi", "json": `"msg":"hello","node":"pi"}`} {
		var out strings.Builder
		log, err := NewLog(&out, "info", format)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("not this")
		log.Info("hello", "node", "pi")
		if !strings.Contains(out.String(), want) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%q: %s", format, out.String())
		}
	}
	if _, err := NewLog(&strings.Builder{}, "info", "xml"); err == nil {
		t.Error("a log in a format that there is not")
	}
}

// TestTheFleetsPageCanBeTurnedOff: an empty value is not the default.
func TestTheFleetsPageCanBeTurnedOff(t *testing.T) {
	c, err := LoadCloud(file(t, "fleetListen: \"\"\nrunDir: \"\"\n"))
	if err != nil || c.FleetListen != "" || c.RunDir != "" {
		t.Fatalf("%+v, %v", c, err)
	}
	text, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := LoadCloud(file(t, string(text))); err != nil || again.FleetListen != "" || again.RunDir != "" {
		t.Errorf("%+v, %v", again, err)
	}
}

func FuzzDecodeEdge(f *testing.F) {
	f.Add("nodeName: pi-1\nhub: [\"192.0.2.1:10350\"]\nkeepAlive: 25s\nlabels: {a: b}\n")
	f.Add("hub: x\n---\nhub: [y]")
	f.Add("&a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		c := DefaultEdge()
		if decode([]byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		// What is valid survives being written and read.
		again, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		var back Edge
		if err := decode(again, &back); err != nil {
			t.Fatalf("%v in\n%s", err, again)
		}
		if err := back.Validate(); err != nil {
			t.Fatalf("%v in\n%s", err, again)
		}
	})
}
