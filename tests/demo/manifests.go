package main

// manifests is what the demo applies: a Deployment of five, and a pod that needs
// a ConfigMap, a Secret and a service account token, and another that its owner
// wants gone five seconds after its node is lost. All of them belong to the node
// that will be lost.
const manifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {text: "hello from a ConfigMap"}
---
apiVersion: v1
kind: Secret
metadata: {name: pin}
stringData: {number: "4711"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: till}
spec:
  replicas: 5
  selector: {matchLabels: {app: till}}
  template:
    metadata: {labels: {app: till}}
    spec:
      nodeSelector: {kubernetes.io/hostname: shop-42}
      terminationGracePeriodSeconds: 1
      containers:
      - {name: till, image: "example.test/holdfast/busybox:1", command: [sleep, "100000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  nodeSelector: {kubernetes.io/hostname: shop-42}
  terminationGracePeriodSeconds: 1
  containers:
  - name: keeper
    image: example.test/holdfast/busybox:1
    command: [sh, -c, 'echo "$TEXT, PIN $(cat /pin/number), token of $(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token) bytes"; exec sleep 100000']
    env:
    - {name: TEXT, valueFrom: {configMapKeyRef: {name: greeting, key: text}}}
    volumeMounts: [{name: pin, mountPath: /pin}]
  volumes: [{name: pin, secret: {secretName: pin}}]
---
apiVersion: v1
kind: Pod
metadata: {name: hasty}
spec:
  nodeSelector: {kubernetes.io/hostname: shop-42}
  terminationGracePeriodSeconds: 1
  tolerations:
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 5}
  containers:
  - {name: hasty, image: "example.test/holdfast/busybox:1", command: [sleep, "100000"]}
`

// pods is how many pods manifests make.
const pods = 7
