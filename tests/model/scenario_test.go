package model

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-edge/holdfast/cloud/roster"
	"github.com/holdfast-edge/holdfast/common/wire"
)

// scenario plays a script on a history in which nothing happens by chance. A line
// of a script is one command:
//
//	cluster creates|updates|deletes pod|configmap NAME
//	edge connects|leaves|takes|reports|asks|loses power [before commit|before ack]
//	edge has status N of NAME
//	hub N takes|looks|sends|claims|begins|finishes|notices|dies
//	line doubles|swaps|drops         the next messages down
//	all goes on                      until nothing is left to do
//	show store|apiserver|traffic
//
// Hubs are numbered by the connections that they were reached by.
type scenario struct {
	*history
	out     strings.Builder
	created int
	fails   []moment // in which the power goes
}

func TestScenarios(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		name := strings.TrimSuffix(filepath.Base(script), ".txt")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			golden := strings.TrimSuffix(script, ".txt") + ".golden"
			if update() {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; if that is right, run with -update\n%s", golden, firstDifference(got, string(want)))
			}
		})
	}
}

// update says whether the golden files are to be written: go test ./tests/model -update.
func update() bool { return flag.Lookup("update").Value.String() == "true" }

// TestMain knows of -update.
func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files of the scenarios anew")
	os.Exit(m.Run())
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d\n got %s\nwant %s", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("got %d lines, want %d", len(g), len(w))
}

// play returns the script with what followed from each command.
func play(t *testing.T, script string) string {
	s := &scenario{history: newHistory(t, 1, newSQLite(t, t.TempDir()))}
	defer func() { s.disk.close(t) }()
	s.calm = true
	s.trace = func(line string) { fmt.Fprintf(&s.out, "  %s\n", line) }
	s.power = func(at moment) bool {
		i := slices.Index(s.fails, at)
		if i >= 0 {
			s.fails = slices.Delete(s.fails, i, i+1)
		}
		return i >= 0
	}
	for i, line := range strings.Split(strings.TrimRight(script, "\n"), "\n") {
		fmt.Fprintln(&s.out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := s.command(strings.Fields(line)); err != nil {
			t.Fatalf("line %d, %q: %v", i+1, line, err)
		}
		if s.fail != "" {
			t.Fatalf("line %d, %q: %s", i+1, line, s.fail)
		}
	}
	return s.out.String()
}

func (s *scenario) command(words []string) error {
	switch who, what := words[0], words[1:]; who {
	case "cluster":
		return s.cluster(what)
	case "edge":
		return s.edgeDoes(strings.Join(what, " "))
	case "hub":
		return s.hubDoes(what)
	case "line":
		return s.lineDoes(what[0])
	case "all":
		return s.goOn()
	case "show":
		return s.show(what[0])
	}
	return fmt.Errorf("there is no such command")
}

func (s *scenario) cluster(what []string) error {
	kind, name := wire.Kind_KIND_POD, what[2]
	if what[1] == "configmap" {
		kind = wire.Kind_KIND_CONFIG_MAP
	}
	var was *wire.ObjectRef
	for _, id := range s.ids() {
		if ref := s.truth[id].Ref; ref.GetKind() == kind && ref.GetName() == name {
			was = ref
		}
	}
	if (was == nil) != (what[0] == "creates") {
		return fmt.Errorf("the cluster has %v", was)
	}
	s.created++
	meta := metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(fmt.Sprint(name, "-", s.created)), Generation: int64(s.created)}
	switch what[0] {
	case "deletes":
		s.drop(kind, name)
		return nil
	case "updates":
		meta.UID = types.UID(was.GetUid())
	}
	if kind == wire.Kind_KIND_POD {
		s.put(roster.Pod(&corev1.Pod{ObjectMeta: meta}))
	} else {
		s.put(roster.ConfigMap(&corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"number": fmt.Sprint(s.created)}}))
	}
	return nil
}

func (s *scenario) edgeDoes(what string) error {
	var key string
	var number int
	if _, err := fmt.Sscanf(what, "has status %d of %s", &number, &key); err == nil {
		s.tellStatus(key, number)
		return nil
	}
	switch what {
	case "connects":
		s.connect()
		return nil
	case "loses power":
		s.powerCut()
		return nil
	case "loses power before commit":
		s.fails = append(s.fails, beforeCommit)
		return nil
	case "loses power before ack":
		s.fails = append(s.fails, beforeAck)
		return nil
	}
	if s.line == nil {
		return fmt.Errorf("the edge has no line")
	}
	switch what {
	case "leaves":
		s.leave()
	case "reports":
		s.report()
	case "asks":
		s.say(&wire.EdgeMessage{Body: &wire.EdgeMessage_CertificateAsk{CertificateAsk: &wire.CertificateAsk{Id: 1, Csr: []byte("a request")}}})
	case "takes":
		if len(s.line.down) == 0 {
			return fmt.Errorf("nothing is on its way down")
		}
		b := s.line.down[0]
		s.line.down = s.line.down[1:]
		s.take(b)
	default:
		return fmt.Errorf("there is no such command")
	}
	return nil
}

func (s *scenario) hubDoes(what []string) error {
	number, err := strconv.Atoi(what[0])
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.lines, func(l *line) bool { return l.number == number && !l.over })
	if i < 0 {
		return fmt.Errorf("hub %d has no session", number)
	}
	l := s.lines[i]
	switch what[1] {
	case "takes":
		if len(l.up) == 0 {
			return fmt.Errorf("nothing is on its way up")
		}
		b := l.up[0]
		l.up = l.up[1:]
		s.hubTakes(l, b)
	case "looks":
		s.look(l, true)
	case "sends":
		s.deliver(l)
	case "claims":
		s.claim(l)
	case "begins":
		s.beginWrite(l)
	case "finishes":
		s.finishWrite(l)
	case "notices", "dies":
		s.end(l, nil)
	default:
		return fmt.Errorf("there is no such command")
	}
	return nil
}

// lineDoes is done by a broken hub or proxy only.
func (s *scenario) lineDoes(what string) error {
	l := s.line
	if l == nil || len(l.down) == 0 {
		return fmt.Errorf("nothing is on its way down")
	}
	l.mangled = true
	switch what {
	case "doubles":
		l.down = slices.Insert(l.down, 1, l.down[0])
	case "swaps":
		l.down[0], l.down[1] = l.down[1], l.down[0]
	case "drops":
		l.down = l.down[1:]
	default:
		return fmt.Errorf("there is no such command")
	}
	return nil
}

// goOn lets everybody do what is his to do, in turn, until nothing is left.
func (s *scenario) goOn() error {
	for range 100 {
		if s.line == nil {
			s.connect()
		}
		for _, l := range slices.Clone(s.lines) {
			for len(l.up) > 0 && !l.over {
				b := l.up[0]
				l.up = l.up[1:]
				s.hubTakes(l, b)
			}
			if l.over || l.delivery == nil {
				continue
			}
			s.look(l, true)
			s.claim(l)
			s.deliver(l)
			s.beginWrite(l)
			s.finishWrite(l)
			if !l.edge {
				s.end(l, nil)
			}
		}
		for s.line != nil && len(s.line.down) > 0 {
			b := s.line.down[0]
			s.line.down = s.line.down[1:]
			s.take(b)
		}
		switch {
		case s.line == nil:
		case s.line.over:
			s.leave()
		default:
			s.report()
		}
		if s.fail != "" || s.settled() {
			return nil
		}
	}
	return fmt.Errorf("it does not come to rest: %v", s.agreement())
}

func (s *scenario) show(what string) error {
	switch what {
	case "store":
		for _, ref := range s.held() {
			is := "as in the cluster"
			if item := s.truth[roster.IDOf(ref)]; item == nil {
				is = "gone from the cluster"
			} else if !slices.Equal(item.Ref.GetVersion(), ref.GetVersion()) {
				is = "another version in the cluster"
			}
			s.tells("%s: %s", wire.Describe(ref), is)
		}
	case "apiserver":
		for _, key := range []string{"till", "door"} {
			if is := s.status[key]; is != nil {
				s.tells("status %d of %s, epoch %d", is.number, key, is.epoch)
			}
		}
	case "traffic":
		size := "under 1 KB"
		if s.bytes >= 1000 {
			size = "1 KB or more"
		}
		s.tells("%d messages both ways, together %s", s.messages, size)
		s.messages, s.bytes = 0, 0
	default:
		return fmt.Errorf("there is no such command")
	}
	return nil
}

// sayEdge is a message of an edge in a few words.
func sayEdge(m *wire.EdgeMessage) string {
	switch body := m.GetBody().(type) {
	case *wire.EdgeMessage_Hello:
		return "Hello"
	case *wire.EdgeMessage_Inventory:
		return fmt.Sprintf("Inventory of %d", len(body.Inventory.GetItems()))
	case *wire.EdgeMessage_Ack:
		return fmt.Sprint("Ack ", body.Ack.GetSeq())
	case *wire.EdgeMessage_Report:
		return fmt.Sprintf("Report %d: %s", body.Report.GetId(), body.Report.GetPayload())
	}
	return "CertificateAsk"
}

// sayHub is a message of a hub in a few words.
func sayHub(m *wire.HubMessage) string {
	switch body := m.GetBody().(type) {
	case *wire.HubMessage_Welcome:
		text := "Welcome"
		if body.Welcome.GetInSync() {
			text += ", in sync"
		}
		if body.Welcome.GetClaimFollows() {
			text += ", claim follows"
		}
		return text
	case *wire.HubMessage_InventoryAsk:
		return "InventoryAsk"
	case *wire.HubMessage_Changes:
		text := fmt.Sprintf("Changes %d:", body.Changes.GetSeq())
		for _, o := range body.Changes.GetUpserts() {
			text += " +" + o.GetRef().GetUid()
		}
		for _, r := range body.Changes.GetDeletes() {
			text += " -" + r.GetUid()
		}
		return text
	case *wire.HubMessage_Synced:
		return "Synced"
	case *wire.HubMessage_Claimed:
		return fmt.Sprint("Claimed, epoch ", body.Claimed.GetEpoch())
	case *wire.HubMessage_ReportResult:
		return fmt.Sprintf("ReportResult %d: %s", body.ReportResult.GetId(), strings.TrimPrefix(body.ReportResult.GetCode().String(), "RESULT_"))
	case *wire.HubMessage_Goodbye:
		return "Goodbye: " + strings.TrimPrefix(body.Goodbye.GetReason().String(), "REASON_")
	}
	return "CertificateAnswer"
}
