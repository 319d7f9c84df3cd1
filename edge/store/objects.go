package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-edge/holdfast/common/wire"
)

// Apply stores a batch of the hub's changes, all or nothing, and tells the
// subscribers. Deletes go by uid: a ConfigMap that was deleted and made anew
// under the same name keeps its new self. A pod's own memory (PodState, tokens)
// stays until the pod's worker has finished with it.
func (s *Store) Apply(ctx context.Context, upserts []*wire.Object, deletes []*wire.ObjectRef) error {
	var changed []Change
	err := s.write(ctx, func(tx *gorm.DB) error {
		changed = changed[:0]
		for _, r := range deletes {
			res := tx.Where("kind = ? AND uid = ?", int32(r.GetKind()), r.GetUid()).Delete(&objectRow{})
			if res.Error != nil {
				return fmt.Errorf("delete %s: %w", wire.Describe(r), res.Error)
			}
			if res.RowsAffected > 0 {
				changed = append(changed, changeOf(r, true))
			}
		}
		for _, o := range upserts {
			r := o.GetRef()
			row := objectRow{Kind: int32(r.GetKind()), UID: r.GetUid(), Namespace: r.GetNamespace(), Name: r.GetName(),
				Version: r.GetVersion(), Payload: o.GetPayload()}
			if row.Payload == nil {
				row.Payload = []byte{}
			}
			// An object which is stored in this very version is left alone, and nobody is told.
			res := tx.Clauses(clause.OnConflict{
				Columns:   []clause.Column{{Name: "kind"}, {Name: "uid"}},
				DoUpdates: clause.AssignmentColumns([]string{"namespace", "name", "version", "payload"}),
				Where:     clause.Where{Exprs: []clause.Expression{clause.Expr{SQL: "objects.version <> excluded.version"}}},
			}).Create(&row)
			if res.Error != nil {
				return fmt.Errorf("store %s: %w", wire.Describe(r), res.Error)
			}
			if res.RowsAffected > 0 {
				changed = append(changed, changeOf(r, false))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("apply %d upserts and %d deletes: %w", len(upserts), len(deletes), err)
	}
	if len(changed) > 0 {
		s.changes.Add(1)
		s.notify(changed)
	}
	return nil
}

func changeOf(r *wire.ObjectRef, deleted bool) Change {
	return Change{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName(), UID: r.GetUid(), Deleted: deleted}
}

// Inventory lists what the node holds, in no particular order.
func (s *Store) Inventory(ctx context.Context) ([]*wire.ObjectRef, error) {
	var rows []objectRow
	if err := s.read(ctx).Select("kind", "uid", "namespace", "name", "version").Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("list the stored objects: %w", s.explain(err))
	}
	refs := make([]*wire.ObjectRef, len(rows))
	for i, r := range rows {
		refs[i] = &wire.ObjectRef{Kind: wire.Kind(r.Kind), Namespace: r.Namespace, Name: r.Name, Uid: r.UID, Version: r.Version}
	}
	return refs, nil
}

// Digest is wire.Digest of the inventory.
func (s *Store) Digest(ctx context.Context) ([]byte, error) {
	refs, err := s.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	return wire.Digest(refs), nil
}

// Pods returns every pod that the hub bound to this node, in the order of
// namespace and name. A pod that this build cannot decode is logged and left
// out; the others must start all the same.
func (s *Store) Pods(ctx context.Context) ([]*corev1.Pod, error) {
	pods, unread, err := s.PodsAndUnread(ctx)
	for _, u := range unread {
		s.log.Error("a stored pod cannot be read and is left alone", "pod", u.Namespace+"/"+u.Name, "uid", u.UID, "err", u.Err)
	}
	return pods, err
}

// UnreadPod is a pod that the hub bound to this node and that this build cannot decode.
type UnreadPod struct {
	Namespace, Name, UID string
	Err                  error
}

// PodsAndUnread is Pods with those that it leaves out, of which nothing is logged.
func (s *Store) PodsAndUnread(ctx context.Context) (pods []*corev1.Pod, unread []UnreadPod, err error) {
	var rows []objectRow
	err = s.read(ctx).Where("kind = ?", int32(wire.Kind_KIND_POD)).Order("namespace, name, uid").Find(&rows).Error
	if err != nil {
		return nil, nil, fmt.Errorf("list the stored pods: %w", s.explain(err))
	}
	pods = make([]*corev1.Pod, 0, len(rows))
	for _, r := range rows {
		pod := new(corev1.Pod)
		if err := decodePod(r, pod); err != nil {
			unread = append(unread, UnreadPod{Namespace: r.Namespace, Name: r.Name, UID: r.UID, Err: err})
			continue
		}
		pods = append(pods, pod)
	}
	return pods, unread, nil
}

// Pod returns the pod with that uid, or ErrNotFound.
func (s *Store) Pod(ctx context.Context, uid string) (*corev1.Pod, error) {
	var rows []objectRow
	if err := s.read(ctx).Where("kind = ? AND uid = ?", int32(wire.Kind_KIND_POD), uid).Limit(1).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read pod with uid %s: %w", uid, s.explain(err))
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("pod with uid %s: %w", uid, ErrNotFound)
	}
	pod := new(corev1.Pod)
	return pod, decodePod(rows[0], pod)
}

// ConfigMap returns the ConfigMap of that name, or ErrNotFound.
func (s *Store) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	cm := new(corev1.ConfigMap)
	return cm, s.named(ctx, cm, wire.Kind_KIND_CONFIG_MAP, "configmap", namespace, name)
}

// Secret returns the Secret of that name, or ErrNotFound.
func (s *Store) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	secret := new(corev1.Secret)
	return secret, s.named(ctx, secret, wire.Kind_KIND_SECRET, "secret", namespace, name)
}

// Node returns the node's own Node object as the hub last sent it, or ErrNotFound.
func (s *Store) Node(ctx context.Context) (*corev1.Node, error) {
	node := new(corev1.Node)
	return node, s.object(ctx, node, "node object", "kind = ?", int32(wire.Kind_KIND_NODE))
}

// Payloads calls each with every stored object of a kind, in no particular order.
func (s *Store) Payloads(ctx context.Context, kind wire.Kind, each func(ref *wire.ObjectRef, payload []byte)) error {
	var rows []objectRow
	if err := s.read(ctx).Where("kind = ?", int32(kind)).Find(&rows).Error; err != nil {
		return fmt.Errorf("list the stored objects of kind %s: %w", kind, s.explain(err))
	}
	for _, r := range rows {
		each(&wire.ObjectRef{Kind: kind, Namespace: r.Namespace, Name: r.Name, Uid: r.UID, Version: r.Version}, r.Payload)
	}
	return nil
}

// Decode reads one stored object that travels as JSON, or returns ErrNotFound.
func (s *Store) Decode(ctx context.Context, kind wire.Kind, uid string, into any) error {
	var rows []objectRow
	if err := s.read(ctx).Where("kind = ? AND uid = ?", int32(kind), uid).Limit(1).Find(&rows).Error; err != nil {
		return fmt.Errorf("read the object of kind %s with uid %s: %w", kind, uid, s.explain(err))
	}
	if len(rows) == 0 {
		return fmt.Errorf("object of kind %s with uid %s: %w", kind, uid, ErrNotFound)
	}
	if err := json.Unmarshal(rows[0].Payload, into); err != nil {
		return fmt.Errorf("decode the stored object of kind %s, %s/%s: %w", kind, rows[0].Namespace, rows[0].Name, err)
	}
	return nil
}

func (s *Store) named(ctx context.Context, into message, kind wire.Kind, what, namespace, name string) error {
	return s.object(ctx, into, what+" "+namespace+"/"+name,
		"kind = ? AND namespace = ? AND name = ?", int32(kind), namespace, name)
}

// object reads the newest matching row: of two namesakes the later one counts.
func (s *Store) object(ctx context.Context, into message, what, where string, args ...any) error {
	var rows []objectRow
	if err := s.read(ctx).Where(where, args...).Order("rowid DESC").Limit(1).Find(&rows).Error; err != nil {
		return fmt.Errorf("read %s: %w", what, s.explain(err))
	}
	if len(rows) == 0 {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return decode(rows[0], into)
}

// message is what Kubernetes' generated types have.
type message interface{ Unmarshal([]byte) error }

// decodePod also holds the pod against what it was sent as: wire has checked the names there, and from a pod's own
// names paths are made and removed.
func decodePod(r objectRow, pod *corev1.Pod) error {
	if err := decode(r, pod); err != nil {
		return err
	}
	if string(pod.UID) != r.UID || pod.Namespace != r.Namespace || pod.Name != r.Name {
		return fmt.Errorf("stored pod %s/%s (uid %s) calls itself %q/%q (uid %q)", r.Namespace, r.Name, r.UID, pod.Namespace, pod.Name, pod.UID)
	}
	var names []string
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			names = append(names, list[i].Name)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	for _, name := range names {
		if name == ".." || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("stored pod %s/%s (uid %s) has a container named %q", r.Namespace, r.Name, r.UID, name)
		}
	}
	return nil
}

func decode(r objectRow, into message) error {
	if err := into.Unmarshal(r.Payload); err != nil {
		ref := &wire.ObjectRef{Kind: wire.Kind(r.Kind), Namespace: r.Namespace, Name: r.Name, Uid: r.UID}
		return fmt.Errorf("decode stored %s: %w", wire.Describe(ref), err)
	}
	return nil
}
