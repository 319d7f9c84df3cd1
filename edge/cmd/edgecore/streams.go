package main

import (
	"io"
	"net/url"
	"os"
	"os/exec"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/edge/stats"
	"github.com/holdfast-edge/holdfast/edge/stream"
)

// ringSize is how much of its log edgecore keeps in memory where no journal does.
const ringSize = 128 << 10

// logOutput is where the log goes. Under systemd the journal keeps it; elsewhere a ring
// does, so that it can be had from the cloud all the same.
func logOutput() (io.Writer, *stream.Ring) {
	if os.Getenv("JOURNAL_STREAM") != "" && journalctl() != "" {
		return os.Stderr, nil
	}
	ring := stream.NewRing(ringSize)
	return io.MultiWriter(ring, os.Stderr), ring
}

// journalctl is the command that reads the journal; empty: systemd does not run here.
func journalctl() string {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return ""
	}
	path, err := exec.LookPath("journalctl")
	if err != nil {
		return ""
	}
	return path
}

// newStreams makes the node's API, for the streams of the hub and the local socket.
func newStreams(e *engine, ring *stream.Ring) *stream.Server {
	return stream.New(stream.Options{
		Node: e.cfg.NodeName, Log: e.log, PodLogsDir: e.cfg.PodLogsDir, Config: public(e.cfg),
		Metrics: e.metrics(), NodeLog: ring, Journalctl: journalctl(), Stats: newStats(e).Handler(), Pods: e.knownPods,
		Runtime: func() (stream.Runtime, error) {
			rt, err := e.answeredRuntime()
			if err != nil {
				return nil, err // not a nil pointer that looks like a runtime
			}
			return rt, nil
		},
	})
}

// newStats measures what the node and its pods use.
func newStats(e *engine) *stats.Stats {
	return stats.New(stats.Options{
		Node: e.cfg.NodeName, Log: e.log, DataDir: e.cfg.DataDir, PodLogsDir: e.cfg.PodLogsDir, CgroupRoot: e.cfg.CgroupRoot, Pods: e.knownPods,
		Runtime: func() (stats.Runtime, error) {
			rt, err := e.answeredRuntime()
			if err != nil {
				return nil, err
			}
			return rt, nil
		},
	})
}

// knownPods are the pods with their status; none while the runtime has not answered.
func (e *engine) knownPods() []*corev1.Pod {
	if m := e.pods.Load(); m != nil {
		return m.Pods()
	}
	return nil
}

// public is the config without what is secret.
func public(cfg config.Edge) config.Edge {
	if cfg.MQTT.Password != "" {
		cfg.MQTT.Password = "(hidden)"
	}
	if u, err := url.Parse(cfg.MQTT.Broker); err == nil && u.User != nil {
		cfg.MQTT.Broker = u.Redacted()
	}
	return cfg
}
