package stats

import "time"

// resource writes /metrics/resource, with the kubelet's names, labels and order, which metrics-server and many dashboards
// know. While the runtime does not answer, the node's figures stand alone and resource_scrape_error is 1.
func (u *usage) resource(t *text) {
	pods := u.distinct()
	containers := func(write func(labels []label, c *containerUsage)) {
		for _, p := range pods {
			for i := range p.containers {
				c := &p.containers[i]
				write([]label{{"container", c.Name}, {"namespace", p.namespace}, {"pod", p.name}}, c)
			}
		}
	}
	whole := func(write func(labels []label, p *podUsage)) {
		for _, p := range pods {
			write([]label{{"namespace", p.namespace}, {"pod", p.name}}, p)
		}
	}
	t.family("container_cpu_usage_seconds_total", counter, "Processor time that the container has used, in seconds of one core.", func(name string) {
		containers(func(l []label, c *containerUsage) { t.seconds(name, l, c.cpu, c.at) })
	})
	t.family("container_memory_working_set_bytes", gauge, "Memory of the container that cannot be given up without harm.", func(name string) {
		containers(func(l []label, c *containerUsage) { t.count(name, l, c.workingSet, c.at) })
	})
	t.family("container_start_time_seconds", gauge, "When the container was started, in seconds since 1970.", func(name string) {
		containers(func(l []label, c *containerUsage) { t.moment(name, l, c.StartedAt) })
	})
	t.family("container_swap_usage_bytes", gauge, "Swap that the container takes.", func(name string) {
		containers(func(l []label, c *containerUsage) { t.count(name, l, c.swap, c.at) })
	})
	n := &u.node
	t.family("node_cpu_usage_seconds_total", counter, "Processor time that everything on the node has used, in seconds of one core.",
		func(name string) { t.seconds(name, nil, n.cpu, n.at) })
	t.family("node_memory_working_set_bytes", gauge, "Memory of the node that cannot be given up without harm.",
		func(name string) { t.count(name, nil, n.workingSet, n.at) })
	t.family("node_swap_usage_bytes", gauge, "Swap that is taken on the node.", func(name string) { t.count(name, nil, n.swap, n.at) })
	t.family("pod_cpu_usage_seconds_total", counter, "Processor time that the pod's containers have used, in seconds of one core.", func(name string) {
		whole(func(l []label, p *podUsage) { t.seconds(name, l, p.cpu, p.at) })
	})
	t.family("pod_memory_working_set_bytes", gauge, "Memory of the pod that cannot be given up without harm.", func(name string) {
		whole(func(l []label, p *podUsage) { t.count(name, l, p.workingSet, p.at) })
	})
	t.family("pod_swap_usage_bytes", gauge, "Swap that the pod takes.", func(name string) {
		whole(func(l []label, p *podUsage) { t.count(name, l, p.swap, p.at) })
	})
	failed := uint64(0)
	if u.err != nil {
		failed = 1
	}
	t.family("resource_scrape_error", gauge, "1 when the containers' figures could not be had.", func(name string) { t.count(name, nil, &failed, time.Time{}) })
	t.family("scrape_error", gauge, "The former name of resource_scrape_error.", func(name string) { t.count(name, nil, &failed, time.Time{}) })
}

// distinct are the pods, one of each name: of one that goes and one that comes in its place the later, for a series may
// be written once only.
func (u *usage) distinct() []*podUsage {
	var out []*podUsage
	for i := range u.pods {
		p := &u.pods[i]
		n := len(out)
		switch {
		case n == 0 || out[n-1].namespace != p.namespace || out[n-1].name != p.name:
			out = append(out, p)
		case p.start.After(out[n-1].start):
			out[n-1] = p
		}
	}
	return out
}
