package outage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// The groups of checks, in the order in which they are shown.
const (
	groupHub         = "hub"
	groupRuntime     = "runtime"
	groupPods        = "pods"
	groupImages      = "images"
	groupObjects     = "objects"
	groupTokens      = "tokens"
	groupVolumes     = "volumes"
	groupDatabase    = "database"
	groupClock       = "clock"
	groupCertificate = "certificate"
	groupBoot        = "boot"
)

// maxFindings bounds the findings of one group: a node with a thousand broken pods has
// one trouble, not a thousand.
const maxFindings = 50

// section collects what is found in one group.
type section struct {
	group string
	found []localstatus.Check
	more  int
	worst string // of those left out
}

func (s *section) add(level, subject, reason, message, remedy string) {
	c := localstatus.Check{Group: s.group, Level: level, Subject: subject, Reason: reason, Message: message, Remedy: remedy}
	if slices.Contains(s.found, c) {
		return // two containers of one image
	}
	if len(s.found) >= maxFindings {
		s.more++
		if level == localstatus.CheckFailing || s.worst == "" {
			s.worst = level
		}
		return
	}
	s.found = append(s.found, c)
}

func (s *section) fail(subject, reason, message, remedy string) {
	s.add(localstatus.CheckFailing, subject, reason, message, remedy)
}

func (s *section) warn(subject, reason, message, remedy string) {
	s.add(localstatus.CheckWarning, subject, reason, message, remedy)
}

// done returns the findings, the failing first; where nothing fails, what is well
// comes before the warnings.
func (s *section) done(well string, args ...any) []localstatus.Check {
	slices.SortStableFunc(s.found, func(a, b localstatus.Check) int { return cmp.Compare(rank(a.Level), rank(b.Level)) })
	out := s.found
	if s.more > 0 {
		out = append(out, localstatus.Check{Group: s.group, Level: s.worst, Reason: "More", Message: fmt.Sprintf("and %d more", s.more)})
	}
	if len(s.found) == 0 || rank(s.found[0].Level) > 0 && well != "" {
		out = append([]localstatus.Check{{Group: s.group, Level: localstatus.CheckOK, Message: fmt.Sprintf(well, args...)}}, out...)
	}
	return out
}

func rank(level string) int {
	return slices.Index([]string{localstatus.CheckFailing, localstatus.CheckWarning, localstatus.CheckOK}, level)
}

// Judge says what of the facts keeps the node from coming back, group by group.
func Judge(f Facts) []localstatus.Check {
	return slices.Concat(judgeHub(f), judgeRuntime(f), judgePods(f), judgeImages(f), judgeObjects(f), judgeTokens(f), judgeVolumes(f),
		judgeDatabase(f.Database), judgeClock(f.Clock), judgeCertificate(f.Certificate), judgeBoot(f.Boot, f.Runtime))
}

// Verdict is what the Node condition says.
type Verdict struct {
	Ready           bool
	Reason, Message string
}

// The reason of a condition that is True.
const reasonReady = "AllChecksPassed"

// What a condition's message names, and how long it may be, in bytes.
const (
	maxNamed   = 3
	maxMessage = 512
)

// Conclude makes the condition of the checks: warnings do not count.
func Conclude(checks []localstatus.Check) Verdict {
	var failing []localstatus.Check
	for _, c := range checks {
		if c.Level == localstatus.CheckFailing {
			failing = append(failing, c)
		}
	}
	if len(failing) == 0 {
		return Verdict{true, reasonReady, "after a reboot without the cloud every pod of this node would run again"}
	}
	var named []string
	for _, c := range failing[:min(len(failing), maxNamed)] {
		text := c.Message
		if c.Subject != "" {
			text = c.Subject + ": " + text
		}
		named = append(named, text)
	}
	rest := ""
	if n := len(failing) - len(named); n > 0 {
		rest = fmt.Sprintf("; and %d more", n)
	}
	const advice = "; `holdfast doctor` on the node tells the remedy"
	return Verdict{false, failing[0].Reason, clip(strings.Join(named, "; "), maxMessage-len(rest)-len(advice)) + rest + advice}
}

// clip shortens a text to at most n bytes, at a character's border.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}
