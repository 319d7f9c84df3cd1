package outage

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/bootunit"
	"github.com/holdfast-edge/holdfast/edge/credential"
	"github.com/holdfast-edge/holdfast/edge/pod"
	"github.com/holdfast-edge/holdfast/edge/runtime"
	"github.com/holdfast-edge/holdfast/edge/store"
)

// Facts are what one look at the node found: all that Judge goes by.
type Facts struct {
	SyncedOnce  bool
	Runtime     RuntimeFacts
	Pods        []PodFacts
	Unread      []store.UnreadPod // what else must run
	PodsErr     error
	Objects     map[Object]Keys
	Images      []runtime.NodeImage
	ImagesErr   error
	Pinned      map[string]bool // full references
	PinErr      error
	Database    DatabaseFacts
	Clock       ClockFacts
	Certificate CertificateFacts
	Boot        BootFacts
}

// RuntimeFacts are about the container runtime.
type RuntimeFacts struct {
	Endpoint     string
	Info         runtime.Info
	Err          error  // it does not answer
	SandboxImage string // empty: not known
	CNIConfDir   string // empty: not known
	CNIConfigs   int    // how many files it holds
}

// PodFacts are about one pod that must run.
type PodFacts struct {
	Pod       *corev1.Pod
	Summary   *pod.Summary // nil: not known
	Tokens    []pod.TokenKept
	TokensErr error
	// Shown are the names of volumes whose files were written once and are still there.
	Shown map[string]bool
	Hosts map[string]HostPath // hostPath volumes by name
}

// HostPath is what lies at the path of such a volume.
type HostPath struct {
	Found   corev1.HostPathType // empty: nothing
	Fleeing bool                // on a file system in memory: a reboot empties it
}

// Object names a ConfigMap or a Secret.
type Object struct {
	Secret          bool
	Namespace, Name string
}

// Keys are those of an object; nil: the node has no such object.
type Keys map[string]bool

// DatabaseFacts are about the node's database.
type DatabaseFacts struct {
	Path      string
	Health    store.Health
	HealthErr error
	Fleeing   bool // its file system is in memory
	Recovery  *store.Recovery
	Checked   bool  // the whole of it was read for this look
	CheckErr  error // of the last time that all was read, this look or an earlier one
	Opened    time.Duration
}

// ClockFacts are about what the node knows of the time.
type ClockFacts struct {
	System time.Time
	Floor  time.Time // by the hub; zero: never heard
}

// CertificateFacts are about the node's certificate.
type CertificateFacts struct {
	Dates credential.Dates
	Err   error
	Now   time.Time // as the node counts it
}

// BootFacts are about what starts edgecore and the runtime.
type BootFacts struct {
	Systemd      bool
	Unit         string // edgecore's; empty: it runs in none
	State        bootunit.State
	RuntimeUnit  string // empty: not known which
	RuntimeState bootunit.State
	RuntimeWants bool // edgecore's unit starts it along
}
