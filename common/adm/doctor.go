package adm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/adm/show"
	"github.com/holdfast-edge/holdfast/common/bootunit"
	"github.com/holdfast-edge/holdfast/common/config"
	"github.com/holdfast-edge/holdfast/common/enrollment"
	"github.com/holdfast-edge/holdfast/common/localstatus"
)

// ErrNotReady is in the error of Doctor where the node is not ready for an outage.
var ErrNotReady = errors.New("this node is not ready for an outage")

// doctorPatience bounds what edgecore may take to look at everything.
const doctorPatience = 45 * time.Second

// Doctor says whether the edge node on this machine would come back from a reboot
// without the cloud, and what is to be done where it would not. Where edgecore does not
// run it says what can be seen from outside.
func (a *App) Doctor(ctx context.Context, o StatusOptions) error {
	if err := o.checkOutput(); err != nil {
		return err
	}
	found, err := a.examine(ctx, o)
	if err != nil {
		return err
	}
	if err := a.showOutage(o.Output, found); err != nil {
		return err
	}
	return notReady(found)
}

// showOutage shows what was found. Of a look that was not made people read the error
// alone: the node may well be ready.
func (a *App) showOutage(output string, found localstatus.Outage) error {
	return a.show(output, found, func() error {
		if !looked(found) {
			return nil
		}
		return show.Outage(a.Out, found)
	})
}

// looked says whether edgecore could look at all.
func looked(o localstatus.Outage) bool { return o.Ready || len(o.Checks) > 0 }

func notReady(o localstatus.Outage) error {
	if o.Ready {
		return nil
	}
	if !looked(o) {
		return fmt.Errorf("edgecore could not look whether this node is ready for an outage: %s (%s); try again, `journalctl -u edgecore` may say more",
			cmp.Or(o.Message, "it gives no cause"), cmp.Or(o.Reason, "Unknown"))
	}
	failing := 0
	for _, c := range o.Checks {
		if c.Level == localstatus.CheckFailing {
			failing++
		}
	}
	return fmt.Errorf("%w: mend what is marked [FAIL] (%d)", ErrNotReady, failing)
}

// examine asks edgecore, or looks from outside.
func (a *App) examine(ctx context.Context, o StatusOptions) (localstatus.Outage, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	runDir, err := o.runDir()
	if err == nil {
		var found localstatus.Outage
		if found, err = localstatus.GetOutage(ctx, runDir); err == nil {
			return found, nil
		}
		if !errors.Is(err, localstatus.ErrNotRunning) {
			return found, asRoot(err)
		}
	}
	return a.fromOutside(o, err), nil
}

// fromOutside is what can be seen while edgecore does not run.
func (a *App) fromOutside(o StatusOptions, why error) localstatus.Outage {
	out := localstatus.Outage{Checked: time.Now().UTC().Truncate(time.Second), Reason: "EdgecoreDown", Message: why.Error()}
	add := func(group, level, subject, reason, message, remedy string) {
		out.Checks = append(out.Checks, localstatus.Check{Group: group, Level: level, Subject: subject, Reason: reason, Message: message, Remedy: remedy})
	}
	path := o.Config
	if path == "" {
		path = config.EdgePath
	}
	c, err := config.LoadEdge(path)
	if err != nil {
		add("config", localstatus.CheckFailing, "", "ConfigUnreadable", err.Error(), "edgecore does not start with it: mend it, or `holdfast join` again")
		c = config.DefaultEdge()
	} else {
		add("config", localstatus.CheckOK, "", "", path+" is good", "")
	}
	out.Node = c.NodeName
	if errors.Is(why, localstatus.ErrNotRunning) {
		add("edgecore", localstatus.CheckFailing, "", "EdgecoreDown", "it does not run, so only what can be seen from outside is told here", "systemctl start edgecore; `journalctl -u edgecore` says why it stopped")
	}
	if cert, err := enrollment.Load(c.DataDir); err != nil {
		add("certificate", localstatus.CheckFailing, "", "CertificateMissing", err.Error(), "holdfast join, with a token of `holdfast token create`")
	} else {
		add("certificate", localstatus.CheckOK, "", "", "node "+cert.NodeName+" has one", "")
	}
	if socket := strings.TrimPrefix(c.ContainerRuntimeEndpoint, "unix://"); !exists(socket) {
		add("runtime", localstatus.CheckFailing, "", "RuntimeDown", "there is no container runtime at "+socket, "systemctl status containerd")
	} else {
		add("runtime", localstatus.CheckOK, "", "", "its socket is "+socket, "")
	}
	a.bootFromOutside(c, add)
	return out
}

func (a *App) bootFromOutside(c config.Edge, add func(group, level, subject, reason, message, remedy string)) {
	const unit, runtimeUnit = "edgecore.service", "containerd.service"
	system := bootunit.System{Root: a.Machine.Root}
	if !system.Runs() {
		add("boot", localstatus.CheckWarning, "", "NoSystemd", "no systemd runs here: nothing starts edgecore at boot that Holdfast knows of", "see to it that something does, and the container runtime before it")
		return
	}
	if state := system.Unit(unit); state != bootunit.Enabled {
		add("boot", localstatus.CheckFailing, unit, "UnitNotEnabled", "it is "+state.String()+": a reboot does not start it", "systemctl enable "+unit)
	} else {
		add("boot", localstatus.CheckOK, "", "", "systemd starts "+unit, "")
	}
	if c.ContainerRuntimeEndpoint != config.DefaultEdge().ContainerRuntimeEndpoint {
		return
	}
	if state := system.Unit(runtimeUnit); state == bootunit.Masked || state == bootunit.Disabled && !system.Wants(unit, runtimeUnit) {
		add("boot", localstatus.CheckFailing, runtimeUnit, "RuntimeUnitNotEnabled", "it is "+state.String()+": a reboot does not start it", "systemctl enable "+runtimeUnit)
	}
}
