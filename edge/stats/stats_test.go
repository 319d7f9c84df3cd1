package stats

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-edge/holdfast/edge/runtime"
)

// versionOne and versionTwo are the files of a machine of 4 GB with one pod, by the version of its cgroups.
func versionOne() map[string]string {
	files := procFiles()
	for name, content := range map[string]string{
		"cpuacct/cpuacct.usage": "5000000000\n", "memory/memory.usage_in_bytes": "3000\n", "memory/memory.stat": "total_inactive_file 1000\ntotal_rss 500\n",
		"cpuacct/kubepods/besteffort/poduid-web/cpuacct.usage":            "2000000000\n",
		"memory/kubepods/besteffort/poduid-web/memory.usage_in_bytes":     "900\n",
		"memory/kubepods/besteffort/poduid-web/memory.stat":               "inactive_file 1\ntotal_inactive_file 200\ntotal_rss 100\ntotal_pgfault 9\ntotal_pgmajfault 3\n",
		"cpuacct/kubepods/besteffort/poduid-web/id-web-main/cgroup.procs": "41\n40\n",
	} {
		files["sys/fs/cgroup/"+name] = content
	}
	return files
}

func versionTwo() map[string]string {
	files := procFiles()
	for name, content := range map[string]string{
		"cpu.stat": "usage_usec 5000000\nuser_usec 1\n", "memory.stat": "anon 500\ninactive_file 1000\n",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poduid_web.slice/cpu.stat":                                      "usage_usec 2000000\n",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poduid_web.slice/memory.current":                                "900\n",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poduid_web.slice/memory.stat":                                   "anon 100\ninactive_file 200\npgfault 9\npgmajfault 3\n",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poduid_web.slice/cri-containerd-id-web-main.scope/cgroup.procs": "41\n40\n",
	} {
		files["sys/fs/cgroup/"+name] = content
	}
	return files
}

func procFiles() map[string]string {
	const dev = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
	return map[string]string{
		"proc/meminfo": "MemTotal:        4000 kB\nMemFree:         1000 kB\nInactive(file):   500 kB\nAnonPages:        200 kB\nSwapTotal:        100 kB\nSwapFree:          40 kB\n",
		"proc/stat":    "cpu  100 0 100 5000 0 0 0 0 0 0\ncpu0 1 2 3\nbtime 1699999000\n", "proc/loadavg": "0.1 0.2 0.3 2/277 100\n",
		"proc/sys/kernel/pid_max": "32768\n",
		"proc/net/dev":            dev + "  eth0: 100 2 3 4 0 0 0 0 200 6 7 8 0 0 0 0\n  wwan0: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n",
		"proc/net/route":          "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\neth0 00000000 01 3 0 0 100 00000000 0 0 0\nwwan0 00000000 01 3 0 0 50 00000000 0 0 0\n",
		"proc/40/net/dev":         dev + "  eth0: 11 1 0 0 0 0 0 0 22 1 0 0 0 0 0 0\n",
		"proc/40/statm":           "100 3 1 1 0 1 0\n", "proc/41/statm": "100 2 1 1 0 1 0\n",
	}
}

func TestResourceMetricsReadAsTheKubelets(t *testing.T) {
	m := newMachine(t, false, func() time.Time { return start.Add(2 * time.Minute) })
	m.write(versionOne())
	web, db := newPod("web"), newPod("db")
	m.pods = []*corev1.Pod{web, db}
	m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
		return []runtime.Usage{used(web, "main", 1_500_000_000, 600), used(db, `odd"name`, 250_000_000, 4096), used(db, "main", 1, 2)}, nil
	}
	w := m.get("/metrics/resource")
	if got := w.Header().Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	const scraped, measured = " 1700000060123", " 1700000120123"
	want := strings.Join([]string{
		`container_cpu_usage_seconds_total{container="main",namespace="shop",pod="db"} 1e-09` + scraped,
		`container_cpu_usage_seconds_total{container="odd\"name",namespace="shop",pod="db"} 0.25` + scraped,
		`container_cpu_usage_seconds_total{container="main",namespace="shop",pod="web"} 1.5` + scraped,
		`container_memory_working_set_bytes{container="main",namespace="shop",pod="db"} 2` + scraped,
		`container_memory_working_set_bytes{container="odd\"name",namespace="shop",pod="db"} 4096` + scraped,
		`container_memory_working_set_bytes{container="main",namespace="shop",pod="web"} 600` + scraped,
		`container_start_time_seconds{container="main",namespace="shop",pod="db"} 1.700000000123e+09`,
		`container_start_time_seconds{container="odd\"name",namespace="shop",pod="db"} 1.700000000123e+09`,
		`container_start_time_seconds{container="main",namespace="shop",pod="web"} 1.700000000123e+09`,
		`node_cpu_usage_seconds_total 5` + measured,
		`node_memory_working_set_bytes 2000` + measured,
		`node_swap_usage_bytes 61440` + measured,
		`pod_cpu_usage_seconds_total{namespace="shop",pod="db"} 0.250000001` + measured,
		`pod_cpu_usage_seconds_total{namespace="shop",pod="web"} 2` + measured,
		`pod_memory_working_set_bytes{namespace="shop",pod="db"} 4098` + measured,
		`pod_memory_working_set_bytes{namespace="shop",pod="web"} 700` + measured,
		`resource_scrape_error 0`,
		`scrape_error 0`,
	}, "\n") + "\n"
	var got strings.Builder
	types := map[string]bool{}
	for line := range strings.Lines(w.Body.String()) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ = strings.Cut(name, " ")
			if types[name] {
				t.Errorf("%s has two types", name)
			}
			types[name] = true
		}
		if !strings.HasPrefix(line, "#") {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), "{"); !types[strings.Fields(name)[0]] {
				t.Errorf("%q comes before its type", line)
			}
			got.WriteString(line)
		}
	}
	if got.String() != want {
		t.Errorf("metrics:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestSummaryOfBothCgroupVersions(t *testing.T) {
	for name, test := range map[string]struct {
		unified bool
		files   map[string]string
		node    uint64 // working set
	}{"v1": {false, versionOne(), 2000}, "v2": {true, versionTwo(), 2500 << 10}} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, test.unified, nil)
			m.write(test.files)
			web, host := newPod("web"), newPod("host")
			host.Spec.HostNetwork = true
			m.pods = []*corev1.Pod{web, host}
			m.write(map[string]string{"logs/shop_web_uid-web/main/0.log": "a line\n"})
			m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
				return []runtime.Usage{used(web, "main", 1_500_000_000, 600), used(host, "main", 1, 1)}, nil
			}
			s := m.summaryOf("/stats/summary")
			n := s.Node
			if n.NodeName != "edge-1" || *n.CPU.UsageCoreNanoSeconds != 5_000_000_000 || *n.Memory.WorkingSetBytes != test.node || n.StartTime.Unix() != 1699999000 {
				t.Errorf("node: %s, CPU %d, memory %d, since %s", n.NodeName, *n.CPU.UsageCoreNanoSeconds, *n.Memory.WorkingSetBytes, n.StartTime)
			}
			if n.CPU.UsageNanoCores == nil {
				t.Error("the first summary has no rate of the node")
			}
			if n.Network.Name != "wwan0" || len(n.Network.Interfaces) != 2 || *n.Network.Interfaces[0].TxBytes != 200 || *n.Network.Interfaces[0].RxErrors != 3 {
				t.Errorf("the node's network: %+v", n.Network)
			}
			if *n.Fs.CapacityBytes == 0 || *n.Fs.UsedBytes == 0 || *n.Runtime.ImageFs.UsedBytes != 5000 || *n.Rlimit.MaxPID != 32768 || *n.Rlimit.NumOfRunningProcesses != 277 {
				t.Errorf("the node's disks and processes: %+v %+v %+v", n.Fs, n.Runtime.ImageFs, n.Rlimit)
			}
			if len(s.Pods) != 2 || s.Pods[0].PodRef.Name != "host" || s.Pods[0].Network != nil {
				t.Fatalf("pods: %+v, want host without a network of its own, and web", s.Pods)
			}
			p := s.Pods[1]
			if *p.CPU.UsageCoreNanoSeconds != 2_000_000_000 || *p.Memory.WorkingSetBytes != 700 || *p.Memory.UsageBytes != 900 || *p.Memory.RSSBytes != 100 ||
				*p.Memory.PageFaults != 9 || *p.Memory.MajorPageFaults != 3 {
				t.Errorf("pod: %+v %+v", p.CPU, p.Memory)
			}
			if p.PodRef.UID != "uid-web" || !p.StartTime.Time.Equal(start.Truncate(time.Second)) || p.Network.Name != "eth0" || *p.Network.RxBytes != 11 || *p.Network.TxBytes != 22 {
				t.Errorf("pod: %+v since %s, network %+v", p.PodRef, p.StartTime, p.Network)
			}
			c := p.Containers[0]
			if c.Name != "main" || *c.Rootfs.UsedBytes != 700 || *c.Logs.UsedBytes == 0 || *c.Logs.InodesUsed != 1 || c.Memory.AvailableBytes != nil {
				t.Errorf("container: %+v %+v %+v", c, c.Rootfs, c.Logs)
			}
			if got := *p.EphemeralStorage.UsedBytes; got != 700+*c.Logs.UsedBytes {
				t.Errorf("ephemeral storage: %d", got)
			}
			less := m.summaryOf("/stats/summary?only_cpu_and_memory=true")
			if less.Node.Fs != nil || less.Node.Network != nil || less.Pods[1].Containers[0].Rootfs != nil || less.Pods[1].CPU == nil {
				t.Errorf("only processor and memory: %+v", less)
			}
		})
	}
}

// TestMemoryWithoutTheController: a Raspberry Pi's kernel may keep no account of memory.
func TestMemoryWithoutTheController(t *testing.T) {
	m := newMachine(t, true, nil)
	files := versionTwo()
	for name := range files {
		if strings.Contains(name, "/memory.") {
			delete(files, name)
		}
	}
	m.write(files)
	web := newPod("web")
	m.pods = []*corev1.Pod{web}
	m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
		u := used(web, "main", 1, 0)
		u.Memory, u.RSS = nil, nil
		return []runtime.Usage{u}, nil
	}
	s := m.summaryOf("/stats/summary?only_cpu_and_memory=true")
	want := uint64(5 * os.Getpagesize())
	if got := s.Pods[0].Containers[0].Memory; got == nil || *got.WorkingSetBytes != want {
		t.Errorf("memory %+v, want what the processes 40 and 41 hold", got)
	}
	if got := s.Pods[0].Memory; got == nil || *got.WorkingSetBytes != want {
		t.Errorf("the pod's memory %+v", got)
	}
	if got := *s.Node.Memory.WorkingSetBytes; got != 2500<<10 {
		t.Errorf("the node's memory: %d", got)
	}
}

func TestRatesAreOfTheTimeBetweenMeasurements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, false, nil)
		m.write(versionOne())
		web := newPod("web")
		m.pods = []*corev1.Pod{web}
		cpu := uint64(1_000_000_000)
		m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
			u := used(web, "main", cpu, 600)
			u.CPUTime = time.Now()
			return []runtime.Usage{u}, nil
		}
		rate := func() *uint64 {
			return m.summaryOf("/stats/summary?only_cpu_and_memory=true").Pods[0].Containers[0].CPU.UsageNanoCores
		}
		if got := rate(); got == nil || *got != 0 || m.runtime.calls.Load() != 2 {
			t.Errorf("rate at first: %v after %d measurements, want none used, by two", got, m.runtime.calls.Load())
		}
		time.Sleep(10 * time.Second)
		cpu += 5_000_000_000
		if got := rate(); got == nil || *got != 500_000_000 || m.runtime.calls.Load() != 3 {
			t.Errorf("rate: %v, want half a core by one more measurement", got)
		}
		time.Sleep(keepUsage / 2)
		if got := rate(); got == nil || *got != 500_000_000 || m.runtime.calls.Load() != 3 {
			t.Errorf("rate a second later: %v after %d measurements, want the same one", got, m.runtime.calls.Load())
		}
		cpu = 100 // the container was restarted under the same name
		time.Sleep(10 * time.Second)
		if got := rate(); got != nil {
			t.Errorf("rate of a counter that began anew: %d", *got)
		}
	})
}

// TestNoRateWhereTheClockWasSet: half a second by the clock in which five were used is not ten cores.
func TestNoRateWhereTheClockWasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, false, nil)
		m.write(versionOne())
		web := newPod("web")
		m.pods = []*corev1.Pod{web}
		cpu, set := uint64(1_000_000_000), time.Duration(0)
		m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
			time.Sleep(time.Duration(m.runtime.calls.Load()%2) * 4 * time.Second) // at times it is slow
			u := used(web, "main", cpu, 600)
			u.CPUTime = time.Now().Round(0).Add(set)
			return []runtime.Usage{u}, nil
		}
		for i, step := range []struct {
			set  time.Duration
			rate bool
		}{
			{0, false}, {0, true}, {0, true},
			{-9500 * time.Millisecond, false}, {0, true},
			{-10 * time.Second, false}, {0, true},
			{-time.Hour, false}, {0, true},
			{time.Minute, false}, {0, true}, {0, true},
		} {
			time.Sleep(10 * time.Second)
			cpu += 5_000_000_000
			set += step.set
			c := m.summaryOf("/stats/summary?only_cpu_and_memory=true").Pods[0].Containers[0].CPU.UsageNanoCores
			if i == 0 {
				continue // the first is made by two measurements
			}
			if (c != nil) != step.rate || c != nil && (*c < 300_000_000 || *c > 900_000_000) {
				t.Errorf("measurement %d, the clock set by %s: rate %v; want one: %v", i, step.set, told(c), step.rate)
			}
		}
	})
}

func told(n *uint64) string {
	if n == nil {
		return "none"
	}
	return strconv.FormatUint(*n, 10)
}

func TestAskersShareOneMeasurement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, false, nil)
		m.write(versionOne())
		m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
			time.Sleep(time.Second)
			return nil, nil
		}
		impatient, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := m.current(impatient, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an asker who gives up: %v", err)
		}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if w := m.get("/metrics/resource"); w.Code != http.StatusOK {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		all.Wait()
		if got := m.runtime.calls.Load(); got != 1 {
			t.Errorf("the runtime was asked %d times, want once: the asker who gave up ends nobody else's measurement", got)
		}
	})
}

func TestRuntimeThatHangsLeavesTheNodesFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, false, nil)
		m.write(versionOne())
		m.runtime.usage = func(ctx context.Context) ([]runtime.Usage, error) {
			<-ctx.Done()
			return nil, runtime.ErrUnavailable
		}
		began := time.Now()
		w := m.get("/metrics/resource")
		if body := w.Body.String(); w.Code != http.StatusOK || !strings.Contains(body, "\nnode_cpu_usage_seconds_total 5 ") ||
			!strings.Contains(body, "\nresource_scrape_error 1\n") || strings.Contains(body, "container") && strings.Contains(body, "container_cpu") {
			t.Errorf("%d\n%s\nwant the node alone, and the error told", w.Code, body)
		}
		for _, path := range []string{"/stats/summary", "/metrics/cadvisor"} {
			if w := m.get(path); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), runtime.ErrUnavailable.Error()) {
				t.Errorf("%s: %d %s, want 503 and the reason", path, w.Code, w.Body)
			}
		}
		if took := time.Since(began); took > 3*patience {
			t.Errorf("three questions took %s", took)
		}
	})
}

func TestWhatHangsInTheKernelIsWaitedForBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, false, nil)
		release := make(chan struct{})
		m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
			<-release // not even its context ends it
			return nil, nil
		}
		w := m.get("/metrics/resource")
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "hangs") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		close(release)
		synctest.Wait()
		if w := m.get("/metrics/resource"); w.Code != http.StatusOK {
			t.Errorf("once it goes on: %d %s", w.Code, w.Body)
		}
	})
}

func TestPodThatComesInPlaceOfOneThatGoes(t *testing.T) {
	m := newMachine(t, false, nil)
	m.write(procFiles())
	old, young := newPod("web"), newPod("web")
	young.UID, young.CreationTimestamp = "uid-young", metav1.NewTime(start.Add(time.Hour))
	m.pods = []*corev1.Pod{old, young}
	m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
		ended := used(young, "main", 3e9, 3) // of the same name, told of once more
		ended.ID, ended.StartedAt = "ended", start.Add(-time.Hour)
		return []runtime.Usage{used(old, "main", 1e9, 1), ended, used(young, "main", 2e9, 2)}, nil
	}
	body := m.get("/metrics/resource").Body.String()
	if n := strings.Count(body, "\ncontainer_cpu_usage_seconds_total{"); n != 1 || !strings.Contains(body, `container_cpu_usage_seconds_total{container="main",namespace="shop",pod="web"} 2 `) {
		t.Errorf("metrics:\n%s\nwant one series, of the younger pod's container that runs", body)
	}
	if s := m.summaryOf("/stats/summary?only_cpu_and_memory=true"); len(s.Pods) != 2 {
		t.Errorf("summary: %d pods, want both", len(s.Pods))
	}
}

func TestCadvisorMetricsForDashboards(t *testing.T) {
	m := newMachine(t, false, nil)
	m.write(versionOne())
	web := newPod("web")
	m.pods = []*corev1.Pod{web}
	m.runtime.usage = func(context.Context) ([]runtime.Usage, error) {
		return []runtime.Usage{used(web, "main", 1_500_000_000, 600)}, nil
	}
	w := m.get("/metrics/cadvisor", "Accept-Encoding", "deflate, gzip;q=0.9")
	if w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("headers: %v", w.Header())
	}
	body := unpacked(t, w)
	const container = `container="main",id="/kubepods/besteffort/poduid-web/id-web-main",image="example.test/shop:1",name="id-web-main",namespace="shop",pod="web"`
	const pod = `container="",id="/kubepods/besteffort/poduid-web",image="",name="",namespace="shop",pod="web"`
	const node = `container="",id="/",image="",name="",namespace="",pod=""`
	for _, want := range []string{
		`container_cpu_usage_seconds_total{` + container + `,cpu="total"} 1.5 `, `container_cpu_usage_seconds_total{` + pod + `,cpu="total"} 2 `,
		`container_cpu_usage_seconds_total{` + node + `,cpu="total"} 5 `, `container_memory_working_set_bytes{` + container + `} 600 `,
		`container_memory_rss{` + container + `} 300 `, `container_fs_usage_bytes{` + container + `,device=""} 700 `,
		`container_network_receive_bytes_total{` + pod + `,interface="eth0"} 11 `, `container_network_transmit_bytes_total{` + node + `,interface="eth0"} 200 `,
		`machine_memory_bytes 4.096e+06`,
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}

func TestGzipOnlyForThoseWhoTakeIt(t *testing.T) {
	for header, want := range map[string]bool{"": false, "gzip": true, "br, gzip": true, "gzip;q=0": false, "gzip; q=0.0": false, "gzip;q=0.1": true, "identity": false} {
		r, _ := http.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Encoding", header)
		if got := takesGzip(r); got != want {
			t.Errorf("%q: %t", header, got)
		}
	}
}
