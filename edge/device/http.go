package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/common/localstatus"
	"github.com/holdfast-edge/holdfast/edge/store"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// maxBody bounds a request, in bytes.
const maxBody = 64 << 10

// Handler is the local HTTP API, for programs on the node, with the line or without:
//
//	GET  /devices                          all devices
//	GET  /devices/NAMESPACE/NAME           one
//	PUT  /devices/NAMESPACE/NAME/desired   {"target": 21, "on": true}: what it shall be
//	POST /devices/NAMESPACE/NAME/report    {"temperature": 20.5}: what it is
//
// An update is answered with the device when it is durable; with 404 for an unknown
// device, 422 for a refused value, 429 for a flood, 503 when it cannot be stored,
// and then {"error": ...} says what is wrong. Nothing is taken in these cases.
func (m *Manager) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+localstatus.DevicesPath, func(w http.ResponseWriter, _ *http.Request) {
		all := localstatus.Devices{Devices: []localstatus.Device{}}
		for _, v := range m.List() {
			all.Devices = append(all.Devices, m.summary(v))
		}
		answer(w, http.StatusOK, all)
	})
	one := localstatus.DevicesPath + "/{namespace}/{name}"
	mux.HandleFunc("GET "+one, func(w http.ResponseWriter, r *http.Request) {
		v, err := m.Get(keyOf(r))
		if err != nil {
			m.refuseRequest(w, err)
			return
		}
		answer(w, http.StatusOK, m.summary(v))
	})
	mux.HandleFunc("PUT "+one+"/desired", m.update(func(op *Operation, u []Update) { op.Desired = u }))
	mux.HandleFunc("POST "+one+"/report", m.update(func(op *Operation, u []Update) { op.Reported = u }))
	return mux
}

func keyOf(r *http.Request) twin.Key {
	return twin.Key{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
}

func (m *Manager) update(into func(*Operation, []Update)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			answer(w, http.StatusForbidden, failure{"a web page may not steer devices"})
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			answer(w, http.StatusRequestEntityTooLarge, failure{fmt.Sprintf("the body has more than %d bytes", maxBody)})
			return
		}
		updates, err := decodeUpdates(body)
		if err != nil {
			answer(w, http.StatusBadRequest, failure{err.Error()})
			return
		}
		op := Operation{Key: keyOf(r)}
		into(&op, updates)
		_, after, err := m.Do(r.Context(), op)
		if err != nil {
			m.refuseRequest(w, err)
			return
		}
		answer(w, http.StatusOK, m.summary(after))
	}
}

// decodeUpdates reads an object of properties, whose values are JSON scalars; numbers
// stay as they are written.
func decodeUpdates(body []byte) ([]Update, error) {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(body, &values); err != nil {
		return nil, fmt.Errorf("the body is no JSON object of properties, such as {\"target\": 21}: %w", err)
	}
	if len(values) == 0 {
		return nil, errors.New("the body names no property, as {\"target\": 21} does")
	}
	updates := make([]Update, 0, len(values))
	for name, raw := range values {
		text := string(raw)
		switch raw[0] {
		case '"':
			if err := json.Unmarshal(raw, &text); err != nil {
				return nil, fmt.Errorf("property %s: %w", name, err)
			}
		case '{', '[', 'n':
			return nil, fmt.Errorf("property %s: its value is no text, number, true or false", name)
		}
		updates = append(updates, Update{Property: name, Value: twin.Value{Text: text}})
	}
	slices.SortFunc(updates, func(a, b Update) int { return strings.Compare(a.Property, b.Property) })
	return updates, nil
}

type failure struct {
	Error string `json:"error"`
}

func (m *Manager) refuseRequest(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	var rejected *twin.RejectedError
	switch {
	case errors.As(err, &rejected), errors.Is(err, ErrTooLarge):
		status = http.StatusUnprocessableEntity
	case errors.Is(err, ErrUnknownDevice):
		status = http.StatusNotFound
	case errors.Is(err, ErrTooMany):
		status = http.StatusTooManyRequests
	case errors.Is(err, store.ErrDiskFull):
		status = http.StatusInsufficientStorage
	}
	answer(w, status, failure{err.Error()})
}

func answer(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(document) // a reader that went away needs no answer
}

// summary is a device for people and programs.
func (m *Manager) summary(v View) localstatus.Device {
	d := localstatus.Device{Namespace: v.Namespace, Name: v.Name, State: string(v.Twin.State), Problem: v.Problem,
		Protocol: v.Device.Spec.Protocol.ProtocolName, Heard: at(v.Twin.Heard), Properties: []localstatus.Property{}}
	if ref := v.Device.Spec.DeviceModelRef; ref != nil {
		d.Model = ref.Name
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	of := m.byUID[v.UID]
	for name, p := range v.Properties {
		s := localstatus.Property{Name: name, Type: string(p.Type), Access: string(p.AccessMode), Unit: p.Unit}
		if e := v.Twin.Properties[name]; e != nil {
			if e.Reported != nil {
				s.Reported, s.At = &e.Reported.Text, at(e.Reported.At)
			}
			if want, byEdge := e.Desired(); want != nil {
				s.Desired, s.DesiredBy = &want.Text, "cloud"
				if byEdge {
					s.DesiredBy = "edge"
				}
			}
			if e.Overridden != nil {
				s.Overridden = e.Overridden.Text
			}
			if e.Rejected != nil {
				s.Rejected = (&twin.RejectedError{Property: name, Value: e.Rejected.Text, Reason: e.Rejected.Reason}).Error()
			}
			if of != nil {
				s.Waiting = len(of.backlog(name))
				s.Unreported = p.ReportToCloud && e.Version > of.report.acked[name]
			}
		}
		d.Properties = append(d.Properties, s)
	}
	slices.SortFunc(d.Properties, func(a, b localstatus.Property) int { return strings.Compare(a.Name, b.Name) })
	return d
}

func at(unixMilli int64) *time.Time {
	if unixMilli == 0 {
		return nil
	}
	t := time.UnixMilli(unixMilli).UTC()
	return &t
}
