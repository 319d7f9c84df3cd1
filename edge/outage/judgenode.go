package outage

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/common/bootunit"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

func judgeHub(f Facts) []localstatus.Check {
	s := section{group: groupHub}
	if !f.SyncedOnce {
		s.fail("", "NeverSynced", "the hub has not told this node's database everything yet", "let the node reach its hub once; `holdfast status` says why it does not")
	}
	return s.done("it has told this node everything at least once")
}

func judgeRuntime(f Facts) []localstatus.Check {
	s, r := section{group: groupRuntime}, f.Runtime
	switch {
	case r.Err != nil:
		s.fail("", "RuntimeDown", r.Err.Error(), "systemctl status containerd; journalctl -u containerd")
	case !r.Info.Ready:
		s.fail("", "RuntimeNotReady", "it says that it is not ready: "+r.Info.Reason, "journalctl -u containerd")
	case r.CNIConfDir != "" && r.CNIConfigs == 0:
		s.fail("", "NoNetworkConfig", "there is no CNI configuration in "+r.CNIConfDir+": after a restart no pod would have a network", "write one there, or run `holdfast join` again, which does")
	case !r.Info.NetworkReady:
		s.fail("", "NetworkNotReady", "the pods' network is not ready: "+r.Info.Reason, "journalctl -u containerd")
	}
	if r.Err == nil && r.SandboxImage == "" {
		judgeUnknownSandboxImage(&s, f)
	}
	return s.done("%s %s answers", r.Info.Name, r.Info.Version)
}

// judgeUnknownSandboxImage: what has no pod to bring back needs no sandbox.
func judgeUnknownSandboxImage(s *section, f Facts) {
	const reason = "SandboxImageUnknown"
	if !slices.ContainsFunc(f.Pods, func(p PodFacts) bool { return !refused(&p) }) {
		s.warn("", reason, "it does not tell the image of pod sandboxes, so nobody knows whether that is here", "name it in edgecore's config (pauseImage); with the first pod it is found by itself")
		return
	}
	s.fail("", reason, fmt.Sprintf("it does not tell the image of pod sandboxes, and no sandbox is known that %s %s has made: nobody knows whether the image is here", f.Runtime.Info.Name, f.Runtime.Info.Version),
		"while its registry can be reached, delete a pod that is made anew: its sandbox tells. Or name the image in edgecore's config (pauseImage): `containerd config dump | grep sandbox` shows it")
}

// Bounds of the disk that holds the database, in bytes left.
const (
	diskFull = 16 << 20
	diskLow  = 256 << 20
	mib      = 1 << 20
)

func judgeDatabase(d DatabaseFacts) []localstatus.Check {
	s := section{group: groupDatabase}
	if d.Fleeing {
		s.fail(d.Path, "DatabaseInMemory", "the data directory lies in memory: a reboot empties it", "put dataDir on a disk, and join again")
	}
	if d.CheckErr != nil {
		s.fail(d.Path, "DatabaseDamaged", d.CheckErr.Error(), "systemctl restart edgecore: it puts the last good copy in its place; then look at the disk or SD card")
	}
	if r := d.Recovery; r != nil {
		s.warn(d.Path, "DatabaseRestored", "it was damaged when edgecore started ("+r.Reason+")", "look at the disk or SD card; "+r.SetAside+" holds the damaged file")
	}
	free := d.Health.Free
	switch {
	case d.HealthErr != nil:
		s.warn(d.Path, "DiskUnknown", d.HealthErr.Error(), "look at the disk")
		return s.done("")
	case free < diskFull:
		s.fail(d.Path, "DiskFull", fmt.Sprintf("%d MiB are left on its disk: containers may not start", free/mib), "free some room: `du -xh / | sort -h | tail`, `journalctl --vacuum-size=50M`")
	case free < diskLow:
		s.warn(d.Path, "DiskLow", fmt.Sprintf("%d MiB are left on its disk", free/mib), "free some room: `du -xh / | sort -h | tail`, `journalctl --vacuum-size=50M`")
	}
	// Both are made a minute after the start.
	if early := d.Opened < 2*time.Minute; !early {
		if d.Health.GoodCopy.IsZero() {
			s.warn(d.Path, "NoGoodCopy", "there is no good copy to fall back to if it is damaged", "edgecore's log says why none could be made: `journalctl -u edgecore`")
		}
		if !d.Health.Reserve {
			s.warn(d.Path, "NoReserve", "there is no room kept for opening it with a full disk", "free some room; edgecore keeps 2 MiB of it within the hour")
		}
	}
	well := "sound when it was opened"
	if d.Checked {
		well = "sound: all of it was read just now"
	}
	if !d.Health.GoodCopy.IsZero() {
		well += ", last good copy of " + d.Health.GoodCopy.UTC().Format("2006-01-02 15:04 MST")
	}
	return s.done("%s; %d MiB free", well, free/mib)
}

// clockSlack is how far the clock may be behind what the hub told.
const clockSlack = 5 * time.Minute

func judgeClock(c ClockFacts) []localstatus.Check {
	s := section{group: groupClock}
	switch {
	case c.Floor.IsZero():
		s.warn("", "ClockFloorUnknown", "the hub has never told the time: after a reboot nothing bounds a clock that starts in 1970", "let the node reach its hub once")
	case c.Floor.Sub(c.System) > clockSlack:
		s.warn("", "ClockBehind", fmt.Sprintf("the system clock shows %s, and it is at least %s", c.System.UTC().Format("2006-01-02 15:04 MST"), c.Floor.UTC().Format("2006-01-02 15:04 MST")),
			"set it: `timedatectl set-ntp true`. Pods run whatever it shows; logs and certificates inside pods go by it")
	}
	return s.done("it is at least %s", c.Floor.UTC().Format("2006-01-02 15:04 MST"))
}

// renewGrace is how long after its end hubs renew a certificate by default.
const renewGrace = 90 * 24 * time.Hour

func judgeCertificate(c CertificateFacts) []localstatus.Check {
	s, ends := section{group: groupCertificate}, c.Dates.Ends
	const day = "2006-01-02"
	switch {
	case c.Err != nil:
		s.fail("", "CertificateMissing", c.Err.Error(), "holdfast join, with a token of `holdfast token create`: without a certificate the node's line never comes back")
	case c.Now.After(ends.Add(renewGrace)):
		s.fail("", "CertificateVoid", "it ended on "+ends.Format(day)+", longer ago than hubs renew by default: the node's line may never come back", "holdfast join, with a token of `holdfast token create`; pods and data stay")
	case c.Now.After(ends):
		s.warn("", "CertificateEnded", "it ended on "+ends.Format(day)+"; the node renews it by its key until "+ends.Add(renewGrace).Format(day), "let the node reach its hub")
	case c.Now.After(c.Dates.RenewalDue.Add(7 * 24 * time.Hour)):
		s.warn("", "CertificateNotRenewed", "it ends on "+ends.Format(day)+", and has been due to be renewed since "+c.Dates.RenewalDue.Format(day), "let the node reach its hub; if it does, edgecore's log says why the hub refuses")
	}
	return s.done("ends on %s, renewed from %s on", ends.Format(day), c.Dates.RenewalDue.Format(day))
}

func judgeBoot(b BootFacts, r RuntimeFacts) []localstatus.Check {
	s := section{group: groupBoot}
	switch {
	case !b.Systemd:
		s.warn("", "NoSystemd", "no systemd runs here: nothing starts edgecore at boot that Holdfast knows of", "see to it that something does, and the container runtime before it")
		return s.done("")
	case b.Unit == "":
		s.warn("", "NotAUnit", "edgecore was started by hand: nothing starts it at boot that Holdfast knows of", "holdfast join without --foreground makes it a unit")
	case b.State != bootunit.Enabled:
		s.fail(b.Unit, "UnitNotEnabled", "it is "+b.State.String()+": a reboot does not start it", "systemctl enable "+b.Unit)
	}
	switch {
	case b.RuntimeUnit == "":
		s.warn("", "RuntimeUnitUnknown", "which unit starts the container runtime at "+r.Endpoint+" is not known", "see to it that it starts at boot")
	case b.RuntimeState == bootunit.Enabled, b.RuntimeWants && b.RuntimeState == bootunit.Disabled:
	case b.RuntimeState == bootunit.Absent:
		s.warn(b.RuntimeUnit, "RuntimeUnitUnknown", "there is no such unit, so what starts the container runtime is not known", "see to it that it starts at boot")
	default:
		s.fail(b.RuntimeUnit, "RuntimeUnitNotEnabled", "it is "+b.RuntimeState.String()+": a reboot does not start it", "systemctl unmask "+b.RuntimeUnit+"; systemctl enable "+b.RuntimeUnit)
	}
	return s.done("systemd starts %s and the container runtime", b.Unit)
}
