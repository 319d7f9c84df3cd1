package localstatus

import "time"

// Status is what edgecore says of itself. What could not be found out in time (the
// container runtime hangs, say) is left out, and the Problem beside it says why.
type Status struct {
	Node    string    `json:"node"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Now is the node's time as edgecore counts it, by which the other times are to be
	// read: the system clock's, or the latest that the hub told of where that is later.
	Now time.Time `json:"now"`
	// Ready: the node is as its Ready condition says, whether or not the hub can hear it.
	Ready       bool   `json:"ready"`
	ReadyReason string `json:"readyReason,omitempty"`
	// NodeReported: the hub has taken the node's latest status.
	NodeReported bool         `json:"nodeReported"`
	Line         Line         `json:"line"`
	Pods         []PodSummary `json:"pods"`
	Images       Images       `json:"images"`
	Outbox       int          `json:"outbox"` // reports that the hub has not taken yet
	Waiting      Waiting      `json:"waiting"`
	Store        Store        `json:"store"`
	Certificate  Certificate  `json:"certificate"`
	Clock        Clock        `json:"clock"`
	Disk         Disk         `json:"disk"`
	Runtime      Runtime      `json:"runtime"`
}

// Line is the line to the hub.
type Line struct {
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of Connected's last change
	Hub       string    `json:"hub,omitempty"`
	Transport string    `json:"transport,omitempty"`
	Synced    bool      `json:"synced"`
	LastError string    `json:"lastError,omitempty"`
	// HeldUntil: somebody holds the line down on purpose (holdfast drill) until then.
	HeldUntil time.Time `json:"heldUntil,omitzero"`
	// RTTMillis is the round trip of the open session's connection; 0: not known.
	RTTMillis float64 `json:"rttMillis,omitempty"`
	// Session is what that connection has moved, with all that the network adds;
	// Messages what the messages of all Sessions since edgecore's start had in bytes.
	Session  Bytes  `json:"session"`
	Messages Bytes  `json:"messages"`
	Sessions uint64 `json:"sessions"`
}

// Bytes are bytes of the line.
type Bytes struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// PodSummary is one pod.
type PodSummary struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	// Phase is the pod's as it is reported to the hub; empty: not known yet.
	Phase    string `json:"phase"`
	Ready    bool   `json:"ready"`
	Restarts int32  `json:"restarts"`
	// Reason and Message say why the pod is not simply what Phase says.
	Reason      string     `json:"reason,omitempty"`
	Message     string     `json:"message,omitempty"`
	Created     *time.Time `json:"created,omitempty"` // the object, in the cloud
	Started     *time.Time `json:"started,omitempty"` // on this node
	IP          string     `json:"ip,omitempty"`
	HostNetwork bool       `json:"hostNetwork,omitempty"`
	// DefaultContainer is the one that the pod's author names for logs and exec.
	DefaultContainer string      `json:"defaultContainer,omitempty"`
	Containers       []Container `json:"containers"`
}

// The kinds and states of a Container.
const (
	KindInit      = "init"
	KindEphemeral = "ephemeral"

	StateWaiting = "waiting"
	StateRunning = "running"
	StateExited  = "exited"
)

// Container is one container of a pod, as its latest attempt is.
type Container struct {
	Name     string     `json:"name"`
	Kind     string     `json:"kind,omitempty"` // init, ephemeral, or empty
	State    string     `json:"state"`
	Reason   string     `json:"reason,omitempty"` // of State, Message too
	Message  string     `json:"message,omitempty"`
	ExitCode *int32     `json:"exitCode,omitempty"` // of StateExited
	Ready    bool       `json:"ready"`
	Restarts int32      `json:"restarts"`
	Image    string     `json:"image"`
	ImageID  string     `json:"imageID,omitempty"`
	ID       string     `json:"id,omitempty"` // as crictl has it
	Started  *time.Time `json:"started,omitempty"`
	Finished *time.Time `json:"finished,omitempty"`
	// Last is how the attempt before ended.
	Last *Ending `json:"last,omitempty"`
}

// Ending is how a container ended.
type Ending struct {
	Reason   string     `json:"reason,omitempty"`
	Message  string     `json:"message,omitempty"`
	ExitCode int32      `json:"exitCode"`
	At       *time.Time `json:"at,omitempty"`
}

// Images are those on the node.
type Images struct {
	List    []Image `json:"list"`
	Bytes   int64   `json:"bytes"` // of all, compressed
	Problem string  `json:"problem,omitempty"`
}

// Image is one image on the node.
type Image struct {
	ID    string   `json:"id"`
	Names []string `json:"names"` // tags first, then digests
	Bytes int64    `json:"bytes"` // compressed
	// Containers is how many containers of the node's pods are made from it.
	Containers int  `json:"containers"`
	Pinned     bool `json:"pinned,omitempty"`
}

// Waiting is what the hub has yet to hear.
type Waiting struct {
	// Reports counts the outbox by kind: node, podStatus, podGone, event.
	Reports map[string]int64 `json:"reports"`
	// Values are those of devices' histories, Messages those of Routes.
	Values   int64 `json:"values"`
	Messages int64 `json:"messages"`
	// Oldest is when the oldest event, value or message was put; statuses have no age,
	// for only the latest is kept.
	Oldest *time.Time `json:"oldest,omitempty"`
}

// Store is the node's database.
type Store struct {
	Path          string           `json:"path"`
	Bytes         int64            `json:"bytes"` // of the file and its write-ahead log
	LogBytes      int64            `json:"logBytes"`
	Objects       int              `json:"objects"`
	Kinds         map[string]int64 `json:"kinds"` // the objects, by kind: pods, configMaps, ...
	EventsDropped uint64           `json:"eventsDropped,omitempty"`
	// Copied is when the last good copy was made, by which a damaged database is
	// replaced; nil: there is none yet.
	Copied    *time.Time `json:"copied,omitempty"`
	CopyBytes int64      `json:"copyBytes,omitempty"`
	// Recovery says what was done about a damaged database; empty when it was sound.
	Recovery string `json:"recovery,omitempty"`
	// SyncedOnce: the hub has told this database everything at least once.
	SyncedOnce bool   `json:"syncedOnce"`
	Problem    string `json:"problem,omitempty"`
}

// The states of a Certificate.
const (
	CertificateValid      = "valid"
	CertificateRenewalDue = "renewal due" // it is renewed in the next session
	CertificateEnded      = "ended"       // it is renewed by proof of its key, if not too late
	CertificateMissing    = "missing"
)

// Certificate is what the node shows the hub.
type Certificate struct {
	State      string    `json:"state"` // by Status.Now
	Node       string    `json:"node,omitempty"`
	Issued     time.Time `json:"issued,omitzero"`
	RenewalDue time.Time `json:"renewalDue,omitzero"`
	Ends       time.Time `json:"ends,omitzero"`
	Problem    string    `json:"problem,omitempty"`
}

// Clock compares the machine's clock with the hub's.
type Clock struct {
	System time.Time `json:"system"`
	// Hub is the hub's time as last heard and counted on since; nil: never heard. After a
	// start without a line it is a floor: it is at least as late as that.
	Hub *time.Time `json:"hub,omitempty"`
	// OffSeconds is how far System is ahead of Hub; negative: behind.
	OffSeconds float64 `json:"offSeconds,omitempty"`
	// Behind: System is more than a minute behind Hub, so the node goes by that.
	Behind bool `json:"behind"`
}

// Disk is the file system of the data directory.
type Disk struct {
	Path  string `json:"path"`
	Bytes uint64 `json:"bytes"`
	Free  uint64 `json:"free"` // to whoever is not root
	// Reserve is what the database keeps for a full disk, to open with after a reboot.
	Reserve int64  `json:"reserve"`
	Problem string `json:"problem,omitempty"`
}

// Runtime is the container runtime.
type Runtime struct {
	Endpoint string `json:"endpoint"`
	Name     string `json:"name,omitempty"`
	Version  string `json:"version,omitempty"`
	Answers  bool   `json:"answers"`
	Ready    bool   `json:"ready"` // and its network
	Problem  string `json:"problem,omitempty"`
}
