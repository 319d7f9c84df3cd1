package dmi

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/holdfast-edge/holdfast/common/atomicfile"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// kept is what Options.StateFile holds: who has registered, and what each has been
// told, so that what has gone while edgecore was down can be taken back.
type kept struct {
	Mappers []keptMapper `json:"mappers"`
}

type keptMapper struct {
	registration
	Devices []keptDevice `json:"devices,omitempty"`
}

type keptDevice struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Model     string `json:"model,omitempty"`
}

// store writes the state file. One that cannot be written is told in the log: the
// mappers then have to register again after edgecore's next start.
func (s *Server) store() {
	if s.o.StateFile == "" {
		return
	}
	s.save.Lock()
	defer s.save.Unlock()
	var all kept
	s.mu.Lock()
	for _, protocol := range sortedNames(s.sessions) {
		all.Mappers = append(all.Mappers, s.sessions[protocol].keep())
	}
	s.mu.Unlock()
	b, err := json.Marshal(all)
	if err == nil {
		err = atomicfile.WriteIn(s.o.StateFile, b, 0o600)
	}
	if err != nil {
		s.o.Log.Warn("the list of mappers cannot be kept; they must register again after a restart of edgecore", "err", err)
	}
}

func (n *session) keep() keptMapper {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := keptMapper{registration: n.registration}
	for _, key := range sortedKeys(n.told) {
		t := n.told[key]
		k.Devices = append(k.Devices, keptDevice{Namespace: key.Namespace, Name: key.Name, UID: t.uid, Model: t.model.Name})
	}
	return k
}

// restore takes up the mappers of the state file. What they know is not known: each
// device is told anew. A file that cannot be read counts as none.
func (s *Server) restore() {
	if s.o.StateFile == "" {
		return
	}
	b, err := os.ReadFile(s.o.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all kept
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		s.o.Log.Warn("the list of mappers cannot be read; they must register again", "file", s.o.StateFile, "err", err)
		return
	}
	devices := s.o.Devices.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range all.Mappers[:min(len(all.Mappers), maxMappers)] {
		if err := k.check(); err != nil {
			s.o.Log.Warn("a mapper in the list cannot be used", "file", s.o.StateFile, "err", err)
			continue
		}
		n := s.newSession(k.registration)
		for _, d := range k.Devices {
			model := twin.Key{Namespace: d.Namespace, Name: d.Model}
			n.told[twin.Key{Namespace: d.Namespace, Name: d.Name}] = told{uid: d.UID, model: model}
			n.models[model] = toldModel{}
		}
		n.markAll(devices)
		s.start(n, s.sessions[n.Protocol])
	}
}

func sortedNames[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
