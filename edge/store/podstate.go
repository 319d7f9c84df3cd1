package store

import (
	"context"
	"fmt"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// PodState returns what edge/pod remembers of a pod, or ErrNotFound.
func (s *Store) PodState(ctx context.Context, uid string) ([]byte, error) {
	var rows []podStateRow
	if err := s.read(ctx).Where("uid = ?", uid).Limit(1).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read the state of the pod with uid %s: %w", uid, s.explain(err))
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("state of the pod with uid %s: %w", uid, ErrNotFound)
	}
	return rows[0].Data, nil
}

// SetPodState keeps b as the pod's state; it is read back after a reboot.
func (s *Store) SetPodState(ctx context.Context, uid string, b []byte) error {
	if b == nil {
		b = []byte{}
	}
	err := s.write(ctx, func(tx *gorm.DB) error {
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&podStateRow{UID: uid, Data: b}).Error
	})
	if err != nil {
		return fmt.Errorf("store the state of the pod with uid %s: %w", uid, err)
	}
	s.changes.Add(1)
	return nil
}

// DeletePodState forgets a pod that is finished: its state and its tokens.
func (s *Store) DeletePodState(ctx context.Context, uid string) error {
	err := s.write(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("pod_uid = ?", uid).Delete(&tokenRow{}).Error; err != nil {
			return err
		}
		return tx.Where("uid = ?", uid).Delete(&podStateRow{}).Error
	})
	if err != nil {
		return fmt.Errorf("delete the state of the pod with uid %s: %w", uid, err)
	}
	s.changes.Add(1)
	return nil
}

// PodStates returns the states of all pods by uid, also of those whose object is
// gone already: after a crash they lead to what must still be removed.
func (s *Store) PodStates(ctx context.Context) (map[string][]byte, error) {
	var rows []podStateRow
	if err := s.read(ctx).Find(&rows).Error; err != nil {
		return nil, fmt.Errorf("read the states of the pods: %w", s.explain(err))
	}
	states := make(map[string][]byte, len(rows))
	for _, r := range rows {
		states[r.UID] = r.Data
	}
	return states, nil
}

// Token is a service account token bound to a pod of this node. The first four
// fields say which; a pod may have several.
type Token struct {
	PodUID, ServiceAccount string
	Audience               string // joined and in order; empty: the apiserver's own
	ExpirationSeconds      int64
	Token                  string
	Issued, Expires        time.Time // to the second
}

// Tokens returns the tokens of a pod, expired ones too: offline an old token is
// better than a pod that cannot start.
func (s *Store) Tokens(ctx context.Context, podUID string) ([]Token, error) {
	var rows []tokenRow
	err := s.read(ctx).Where("pod_uid = ?", podUID).Order("service_account, audience, expiration_seconds").Find(&rows).Error
	if err != nil {
		return nil, fmt.Errorf("read the tokens of the pod with uid %s: %w", podUID, s.explain(err))
	}
	tokens := make([]Token, len(rows))
	for i, r := range rows {
		tokens[i] = Token{PodUID: r.PodUID, ServiceAccount: r.ServiceAccount, Audience: r.Audience, ExpirationSeconds: r.ExpirationSeconds,
			Token: r.Token, Issued: time.Unix(r.Issued, 0).UTC(), Expires: time.Unix(r.Expires, 0).UTC()}
	}
	return tokens, nil
}

// PutToken keeps a token in place of the earlier one for the same purpose.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	row := tokenRow{PodUID: t.PodUID, ServiceAccount: t.ServiceAccount, Audience: t.Audience, ExpirationSeconds: t.ExpirationSeconds,
		Token: t.Token, Issued: t.Issued.Unix(), Expires: t.Expires.Unix()}
	err := s.write(ctx, func(tx *gorm.DB) error {
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
	if err != nil {
		return fmt.Errorf("store a token of service account %s for the pod with uid %s: %w", t.ServiceAccount, t.PodUID, err)
	}
	return nil
}
