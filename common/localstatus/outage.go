package localstatus

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// Where edgecore's socket tells of outages: GET OutagePath checks anew, POST HoldPath
// with ?for=DURATION holds the line to the hub down, and DELETE HoldPath lets it go.
const (
	OutagePath = "/outage"
	HoldPath   = "/line/hold"
)

// Outage says whether the node would come back from a reboot without the cloud, all its
// pods with it.
type Outage struct {
	Node    string    `json:"node"`
	Checked time.Time `json:"checked"`
	// Ready, Reason and Message are those of the Node's condition OfflineReady as this
	// check found it; the condition itself turns False only when a finding lasts.
	Ready   bool    `json:"ready"`
	Reason  string  `json:"reason"`
	Message string  `json:"message"`
	Checks  []Check `json:"checks"`
}

// The levels of a Check.
const (
	CheckOK      = "ok"
	CheckWarning = "warning" // worth a look, and no reason why the node should not come back
	CheckFailing = "failing"
)

// Check is one thing that was found. A group of checks in which nothing is amiss is one
// Check of level ok.
type Check struct {
	Group   string `json:"group"`
	Level   string `json:"level"`
	Subject string `json:"subject,omitempty"` // what it is about: pod shop/till, image ...
	Reason  string `json:"reason,omitempty"`  // one word for programs, where Level is not ok
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// Hold is the answer about a line that is held down.
type Hold struct {
	Until time.Time `json:"until"`
}

// GetOutage has the edgecore whose run directory it is check how ready it is.
func GetOutage(ctx context.Context, runDir string) (o Outage, err error) {
	return o, get(ctx, runDir, OutagePath, &o)
}

// HoldLine holds the line to the hub down for d; it comes back by itself.
func HoldLine(ctx context.Context, runDir string, d time.Duration) (h Hold, err error) {
	return h, call(ctx, runDir, http.MethodPost, HoldPath+"?for="+url.QueryEscape(d.String()), &h)
}

// ReleaseLine ends a HoldLine before its time.
func ReleaseLine(ctx context.Context, runDir string) error {
	return call(ctx, runDir, http.MethodDelete, HoldPath, nil)
}

// Route is something more that is answered on the socket; Pattern is as http.ServeMux
// has it.
type Route struct {
	Pattern string
	Handler http.Handler
}

// OutageRoutes answer GetOutage, HoldLine and ReleaseLine.
func OutageRoutes(check func(context.Context) Outage, hold func(time.Duration) (time.Time, error), release func()) []Route {
	answer := func(w http.ResponseWriter, document any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(document) // a reader that went away needs no answer
	}
	return []Route{
		{"GET " + OutagePath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, check(r.Context())) })},
		{"POST " + HoldPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d, err := time.ParseDuration(r.URL.Query().Get("for"))
			var until time.Time
			if err == nil {
				until, err = hold(d)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer(w, Hold{until})
		})},
		{"DELETE " + HoldPath, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			release()
			w.WriteHeader(http.StatusNoContent)
		})},
	}
}

// Drill is what a rehearsed outage has shown, the report of `holdfast drill`.
type Drill struct {
	Node   string    `json:"node"`
	Began  time.Time `json:"began"`
	Ended  time.Time `json:"ended"`
	Hold   string    `json:"hold"` // how long the line was to be down
	Passed bool      `json:"passed"`
	// Problems are why it was not passed.
	Problems []string        `json:"problems,omitempty"`
	Runtime  *DrilledRuntime `json:"runtime,omitempty"` // nil: it was not restarted
	Line     DrilledLine     `json:"line"`
	Pods     []DrilledPod    `json:"pods"`
	// LeftOut are pods that were not ready before, of which nothing could be shown.
	LeftOut []string `json:"leftOut,omitempty"`
}

// DrilledRuntime is what the restart of the container runtime did.
type DrilledRuntime struct {
	Command string  `json:"command"`
	Seconds float64 `json:"seconds,omitempty"` // until it answered again
	Problem string  `json:"problem,omitempty"`
}

// DrilledLine is what became of the line.
type DrilledLine struct {
	Cut     time.Time `json:"cut,omitzero"`
	Back    time.Time `json:"back,omitzero"`
	Waiting int       `json:"waiting"` // reports that waited for the hub at most
	// BackSeconds is how long the line took to come back after it was let go,
	// DrainedSeconds until the hub had taken all reports.
	BackSeconds    float64 `json:"backSeconds"`
	DrainedSeconds float64 `json:"drainedSeconds"`
}

// DrilledPod is what became of a pod that was ready before.
type DrilledPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Ready: at the end, and without the cloud.
	Ready           bool    `json:"ready"`
	Reason          string  `json:"reason,omitempty"`
	Restarts        int32   `json:"restarts"` // in this time
	Replaced        int     `json:"replaced"` // containers that are others than before
	NotReadySeconds float64 `json:"notReadySeconds"`
}
