package stats

import (
	goruntime "runtime"
	"time"
)

// subject is what a series of cAdvisor's is about: a container, a pod or the node.
type subject struct {
	labels []label
	figures
	container *containerUsage // nil: a pod or the node
	uid       string          // of a pod as a whole
}

func cadvisorLabels(container, id, image, name, namespace, pod string) []label {
	return []label{{"container", container}, {"id", id}, {"image", image}, {"name", name}, {"namespace", namespace}, {"pod", pod}}
}

func (u *usage) subjects() []subject {
	list := []subject{{labels: cadvisorLabels("", "/", "", "", "", ""), figures: u.node}}
	for _, p := range u.distinct() {
		list = append(list, subject{labels: cadvisorLabels("", p.cgroup, "", "", p.namespace, p.name), figures: p.figures, uid: p.uid})
		for i := range p.containers {
			c := &p.containers[i]
			list = append(list, subject{labels: cadvisorLabels(c.Name, p.cgroup+"/"+c.ID, c.Image, c.ID, p.namespace, p.name), figures: c.figures, container: c})
		}
	}
	return list
}

// cadvisor writes those series of /metrics/cadvisor that dashboards and alerts are made of.
func (u *usage) cadvisor(t *text, w *wider, memory *uint64) {
	list := u.subjects()
	each := func(write func(s *subject)) {
		for i := range list {
			write(&list[i])
		}
	}
	t.family("container_cpu_usage_seconds_total", counter, "Processor time used, in seconds of one core.", func(name string) {
		each(func(s *subject) { t.seconds(name, append(s.labels, label{"cpu", "total"}), s.cpu, s.at) })
	})
	t.family("container_fs_usage_bytes", gauge, "What the container wrote to its own file system.", func(name string) {
		each(func(s *subject) {
			if s.container != nil && s.container.Layer != nil {
				t.count(name, append(s.labels, label{"device", ""}), s.container.Layer.Bytes, s.container.Layer.Time)
			}
		})
	})
	for _, m := range []struct {
		name, help string
		of         func(*subject) *uint64
	}{
		{"container_memory_rss", "Memory that is not of files.", func(s *subject) *uint64 { return s.rss }},
		{"container_memory_swap", "Swap taken.", func(s *subject) *uint64 { return s.swap }},
		{"container_memory_usage_bytes", "All memory in use, that of files included.", func(s *subject) *uint64 { return s.memory }},
		{"container_memory_working_set_bytes", "Memory that cannot be given up without harm.", func(s *subject) *uint64 { return s.workingSet }},
	} {
		t.family(m.name, gauge, m.help, func(name string) {
			each(func(s *subject) { t.count(name, s.labels, m.of(s), s.at) })
		})
	}
	t.networks(list, w)
	t.family("container_start_time_seconds", gauge, "When the container was started, in seconds since 1970.", func(name string) {
		each(func(s *subject) {
			if s.container != nil {
				t.moment(name, s.labels, s.container.StartedAt)
			}
		})
	})
	cores := uint64(goruntime.NumCPU())
	t.family("machine_cpu_cores", gauge, "Processors of the node.", func(name string) { t.count(name, nil, &cores, time.Time{}) })
	t.family("machine_memory_bytes", gauge, "Memory of the node.", func(name string) { t.count(name, nil, memory, time.Time{}) })
}

// networks writes what went over the interfaces of pods and of the node.
func (t *text) networks(list []subject, w *wider) {
	for _, m := range []struct {
		name, help string
		of         func(*link) *uint64
	}{
		{"container_network_receive_bytes_total", "Bytes received.", func(l *link) *uint64 { return &l.received }},
		{"container_network_receive_errors_total", "Errors while receiving.", func(l *link) *uint64 { return &l.receiveErrors }},
		{"container_network_receive_packets_dropped_total", "Packets received and dropped.", func(l *link) *uint64 { return &l.receiveDropped }},
		{"container_network_receive_packets_total", "Packets received.", func(l *link) *uint64 { return &l.receivePackets }},
		{"container_network_transmit_bytes_total", "Bytes sent.", func(l *link) *uint64 { return &l.sent }},
		{"container_network_transmit_errors_total", "Errors while sending.", func(l *link) *uint64 { return &l.sendErrors }},
		{"container_network_transmit_packets_dropped_total", "Packets dropped instead of sent.", func(l *link) *uint64 { return &l.sendDropped }},
		{"container_network_transmit_packets_total", "Packets sent.", func(l *link) *uint64 { return &l.sendPackets }},
	} {
		t.family(m.name, counter, m.help, func(name string) {
			for i := range list {
				s := &list[i]
				var over []link
				switch {
				case s.uid != "":
					over = w.pods[s.uid].links
				case s.container == nil:
					over = w.links
				}
				for j := range over {
					t.count(name, append(s.labels, label{"interface", over[j].name}), m.of(&over[j]), w.at)
				}
			}
		})
	}
}
