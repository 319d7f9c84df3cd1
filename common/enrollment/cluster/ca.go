// Package cluster keeps what joining needs in the cluster: the CA and the join
// tokens, as Secrets in holdfast-system. cloud/identity and cloud/enroll read
// them; common/adm makes them. It is apart from enrollment so that an edge does
// not carry client-go. It never caches: each call asks the apiserver.
package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/holdfast-edge/holdfast/common/pki"
)

// Where things are in the cluster.
const (
	Namespace = "holdfast-system"
	CASecret  = "holdfast-ca"
	// CAName is the common name of the CA.
	CAName = "holdfast"
)

// EnsureNamespace makes the namespace where there is none.
func EnsureNamespace(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Namespaces().Get(ctx, Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", Namespace, err)
	}
	return nil
}

// EnsureCA returns the cluster's CA, and makes it where there is none. Of
// several callers at once one makes it, and all return the same. A Secret that
// is there but cannot be read as a CA is an error and stays as it is: a new CA
// would lock every node out.
func EnsureCA(ctx context.Context, client kubernetes.Interface) (*pki.CA, error) {
	ca, err := GetCA(ctx, client)
	if !apierrors.IsNotFound(err) {
		return ca, err
	}
	if err := EnsureNamespace(ctx, client); err != nil {
		return nil, err
	}
	if ca, err = pki.NewCA(CAName); err != nil {
		return nil, err
	}
	_, err = client.CoreV1().Secrets(Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: CASecret, Namespace: Namespace},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: ca.CertPEM, corev1.TLSPrivateKeyKey: ca.KeyPEM},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("keep the CA in secret %s/%s: %w", Namespace, CASecret, err)
	}
	// What counts is what the apiserver holds now, whoever made it.
	return GetCA(ctx, client)
}

// GetCA reads the cluster's CA. apierrors.IsNotFound holds for the error where
// there is none.
func GetCA(ctx context.Context, client kubernetes.Interface) (*pki.CA, error) {
	secret, err := client.CoreV1().Secrets(Namespace).Get(ctx, CASecret, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read secret %s/%s: %w", Namespace, CASecret, err)
	}
	ca, err := pki.ParseCA(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s (restore it from a backup; deleting it makes a new CA, and every node must join again): %w", Namespace, CASecret, err)
	}
	return ca, nil
}
